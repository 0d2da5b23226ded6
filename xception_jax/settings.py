"""Sections of settings: a setting's name, type, range, default and meaning stand once, as a field of a section.

A section stands beside the code that it sets, and `recipe.py` puts the sections together. The ConfigDict that a
file in configs/ starts from, the checks, `--help` and the table in docs/settings.md are all made from the same
fields.
"""

import contextlib
import difflib
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from pydantic.fields import FieldInfo

from xception_jax.errors import SettingError

# 0 means None as well, as in version 0.1, whose command line could not reset a number to None.
# (False == 0, but it is of another type.)
zero_is_none = pydantic.BeforeValidator(lambda value: None if value == 0 and type(value) is not bool else value)


def setting(default: Any, meaning: str, *, free: bool = False, **limits: Any) -> Any:
    """A field of a `Section`.

    Args:
      default: value that holds where a recipe says nothing.
      meaning: one line for the tables of settings.
      free: whether a run may be continued with another value. The other settings decide the weights that a step
        gives, so a continuation must have the same ones.
      **limits: of the value, as in `pydantic.Field`: gt, ge, lt, le, min_length, max_length.
    """
    return pydantic.Field(default, description=meaning, json_schema_extra={"free": free}, **limits)


@contextlib.contextmanager
def within(*sections: str) -> Iterator[None]:
    """Puts the names of sections in front of the setting that a SettingError raised inside names."""
    try:
        yield
    except SettingError as error:
        raise error.within(*sections) from None


def is_free(field: FieldInfo) -> bool:
    """Whether the setting may differ between a run and its continuation."""
    return bool((field.json_schema_extra or {}).get("free"))


class Section(pydantic.BaseModel):
    """Base class of sections: immutable, compared by value, with keyword arguments only.

    Unknown names, values of other types, infinite numbers and NaN are refused.

    Raises:
      SettingError: names the first setting that cannot be used.

    >>> class Crop(Section):
    ...     fraction: float = setting(0.875, "share of the image's sides", gt=0, le=1)
    >>> Crop().fraction
    0.875
    >>> Crop(fraction=2)
    Traceback (most recent call last):
    xception_jax.errors.SettingError: fraction = 2: input should be less than or equal to 1
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise _to_setting_error(error, type(self)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed, checked like any other."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


def _to_setting_error(error: pydantic.ValidationError, section: type[Section]) -> SettingError:
    """The first fault that pydantic found."""
    fault = error.errors(include_url=False)[0]
    # After the field's own name come places in a tuple, and pydantic's names for the alternatives of a union.
    names = [str(part) for place, part in enumerate(fault["loc"]) if place == 0 or isinstance(part, int)]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return cause.within(*names)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], section.model_fields, n=1)
        remedy = "is not a setting; " + (f"did you mean {near[0]!r}?" if near else "remove it")
    elif fault["type"] == "missing" and isinstance(fault["loc"][-1], int):
        names, remedy = names[:-1], "has too few values"
    else:
        remedy = fault["msg"][0].lower() + fault["msg"][1:]
    return SettingError(".".join(names), fault["input"], remedy)


def to_config_dict(section: type[Section] | Section, **given: Any) -> ConfigDict:
    """The section's defaults, or the values of an instance, as a ConfigDict with the fields' types.

    Args:
      **given: ConfigDicts to take for some of the fields.
    """
    config = ConfigDict()
    for name, field in (section if isinstance(section, type) else type(section)).model_fields.items():
        value = given.get(name, field.default if isinstance(section, type) else getattr(section, name))
        if isinstance(value, Section):
            config[name] = to_config_dict(value)
        elif value is None:
            config[name] = placeholder(_plain_type(field.annotation))
        else:
            config[name] = value
    return config


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone; without None."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return tuple(
        item for item in (typing.get_args(annotation) if union else (annotation,)) if item is not type(None)
    )


def _plain_type(annotation: Any) -> type:
    """The type of the values of a field, such as str for Literal["a", "b"] | None."""
    first = _alternatives(annotation)[0]
    if typing.get_origin(first) is Literal:
        return type(typing.get_args(first)[0])
    return typing.get_origin(first) or first


class Row(NamedTuple):
    """A setting in a table: its name below the section, the values it may have, its default and its meaning."""

    name: str
    values: str
    default: str
    meaning: str


def table(section: type[Section]) -> Iterator[Row]:
    """A row for each setting, in the order of the fields."""
    for name, field in section.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            yield Row(name, _values(field), repr(field.default), field.description or "")


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _values(field: FieldInfo) -> str:
    """The type and range of a field in words, such as "float > 0 or None"."""
    names = ", ".join(map(_type_name, _alternatives(field.annotation)))
    limits = [
        f" {sign} {getattr(limit, name)}"
        for name, sign in _SIGNS.items()
        for limit in field.metadata
        if hasattr(limit, name)
    ]
    optional = field.default is None or type(None) in typing.get_args(field.annotation)
    return names + ",".join(limits) + " or None" * optional


def _type_name(annotation: Any) -> str:
    """A type in words, such as "tuple of int"."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(map(repr, inner))
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is tuple:
        return f"tuple of {_type_name(inner[0])}"
    return annotation.__name__
