"""Tokens, vocabularies and word vectors, against cases worked out by hand from the rules of others."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xception_jax.data.text import embeddings, vocabulary
from xception_jax.data.text.tokenizers import TOKENIZERS
from xception_jax.data.text.vocabulary import Vocabulary
from xception_jax.errors import SettingError


class TestTokenizers:
    @pytest.mark.parametrize(
        "text, tokens",
        [
            ("You can now install TorchText using pip!", "you can now install torchtext using pip !"),  # its docs
            ("Don't 'quote'", "don ' t ' quote '"),
            ('a "b" c"d', "a b cd"),  # a double quote vanishes without a space
            ("U.S. up 3.5%, at $4-5", "u . s . up 3 . 5% , at $4-5"),
            ("(Reuters) - What?! No", "( reuters ) - what ? ! no"),
            ("one;two:three", "one two three"),
            ("Wall St. #39;s &lt;b&gt;", "wall st . #39 s &lt b&gt"),
            (r"oil\prices \\", r"oil\prices \\"),
            ("a<br />b<BR />c<br/>d<br  />e", "a b c<br/>d<br />e"),  # the exact tag alone
            ('x<b"r />y', "x y"),  # double quotes go before the tags
            ("Été İ ß", "été i̇ ß"),
            ("a\u00a0b\u2003c\x1cd\n\te", "a b c d e"),
            ("[x] {y} a/b -_*&", "[x] {y} a/b -_*&"),
            (" \n", ""),
            ("", ""),
        ],
    )
    def test_basic_english_is_torchtexts(self, text, tokens):
        assert TOKENIZERS["basic_english"](text) == tokens.split(" ") * bool(tokens)

    def test_the_others(self):
        assert TOKENIZERS["whitespace"](" A b.\n\u3000c ") == ["A", "b.", "c"]
        assert TOKENIZERS["characters"]("a \né𝄞") == ["a", " ", "\n", "é", "𝄞"]

    def test_workers_get_them(self):
        for name, tokenize in TOKENIZERS.items():
            assert pickle.loads(pickle.dumps(tokenize))("a b") == tokenize("a b"), name


TEXTS = [["b", "a", "b", "<unk>"], [], ["é", "Z", "a", "b", "<pad>"], ["<unk>", "<pad>", "c c"]]


class TestVocabulary:
    """b occurs three times and a twice; the others once, in the order of their code points: Z, c, é."""

    def test_padding_first(self):
        known = vocabulary.build(TEXTS)
        assert known == Vocabulary(("<pad>", "<unk>", "b", "a", "Z", "c c", "é"), pad=0, unknown=1)
        assert len(known) == 7
        ids = known.encode(["a", "nothing", "b", "<unk>", "é", "<pad>"])  # a text can hold no padding
        np.testing.assert_array_equal(ids, np.array([3, 1, 2, 1, 6, 1], np.int32), strict=True)
        np.testing.assert_array_equal(known.encode([]), np.zeros(0, np.int32), strict=True)

    def test_the_notebooks_order(self):
        known = vocabulary.build(TEXTS, order="notebook")
        assert known == Vocabulary(("<unk>", "<pad>", "b", "a", "Z", "c c", "é"), pad=0, unknown=0)
        ids = known.encode(["b", "nothing", "<unk>", "<pad>"])  # as torchtext 0.9 has it
        np.testing.assert_array_equal(ids, np.array([2, 0, 0, 1], np.int32), strict=True)

    @pytest.mark.parametrize("order", ["pad_first", "notebook"])
    def test_rare_tokens_and_those_beyond_the_size_are_left_out(self, order):
        assert vocabulary.build(TEXTS, min_freq=2, order=order).tokens[2:] == ("b", "a")
        assert vocabulary.build(TEXTS, max_size=3, order=order).tokens[2:] == ("b", "a", "Z")
        assert vocabulary.build(TEXTS, max_size=9, min_freq=3, order=order).tokens[2:] == ("b",)
        assert vocabulary.build([], order=order).tokens[2:] == ()

    def test_workers_get_it_without_its_dictionary(self):
        known = vocabulary.build([[str(number) for number in range(1000)]])
        before = pickle.dumps(known)
        ids = known.encode(["7", "999"])
        assert pickle.dumps(known) == before
        np.testing.assert_array_equal(pickle.loads(before).encode(["7", "999"]), ids)

    def test_a_record_is_json(self):
        for order in ("pad_first", "notebook"):
            known = vocabulary.build(TEXTS, order=order)
            assert Vocabulary.from_record(json.loads(json.dumps(known.record()))) == known

    def test_the_digest_tells_vocabularies_apart(self):
        one = vocabulary.build([["a", "b"]])
        others = [
            vocabulary.build([["a", "b"]], order="notebook"),
            vocabulary.build([["a", "b", "b"]]),
            vocabulary.build([["a", "c"]]),
            vocabulary.build([["a b"]]),
            Vocabulary(one.tokens, pad=1, unknown=0),
        ]
        digests = {known.digest() for known in (one, *others)}
        assert len(digests) == 6 and all(len(d) == 16 and int(d, 16) for d in digests)
        assert vocabulary.build([["b"], ["a"]]).digest() == one.digest()


class TestVocabularyFile:
    def test_it_reads_like_a_list(self):
        known = vocabulary.build([["oil-rich", "naïve", "#", "6 tokens"]])
        lines = [
            "6 tokens, padding 0, unknown 1",
            "<pad>",
            "<unk>",
            "#",
            r"6\u0020tokens",
            "naïve",
            "oil-rich",
            "",
        ]
        assert known.to_text() == "\n".join(lines)

    @given(st.lists(st.text(st.characters(), min_size=1), unique=True))
    def test_any_tokens_come_back(self, tokens):
        known = Vocabulary(("<pad>", "<unk>", *sorted({*tokens} - {"<pad>", "<unk>"})), pad=0, unknown=1)
        assert Vocabulary.from_text(known.to_text().encode().decode()) == known

    def test_a_text_file_keeps_what_editors_and_systems_change(self, tmp_path):
        odd = [
            "\n",
            "\r",
            "\r\n",
            "\\",
            "\\n",
            "\t",
            "\x00",
            "\x1f",
            "\x7f",
            "\x85",
            "\xa0",
            "\u2028",
            "\ufeff",
            "\ud800",
        ]
        odd += ["𝄞", "\U000e0001", "é", "e\u0301"]
        known = Vocabulary(("<unk>", "<pad>", " ", "  ", " a", "\\u0020", *odd), pad=0, unknown=0)
        path = tmp_path / "vocabulary.txt"
        path.write_text(known.to_text(), encoding="utf-8", newline="\r\n")
        assert Vocabulary.from_text(path.read_text(encoding="utf-8")) == known

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "line 1: '' is not"),
            ("<pad>\n<unk>\na\n", "line 1: '<pad>' is not"),
            ("3 tokens, padding 0\n<pad>\n<unk>\na\n", "line 1: '3 tokens, padding 0' is not"),
            ("3 tokens, padding 0, unknown 3\n<pad>\n<unk>\na\n", "line 1: padding and unknown must be below 3"),
            ("3 tokens, padding 0, unknown 1\n<pad>\n<unk>\n", "line 3 is the last; line 1 says 3 tokens"),
            ("3 tokens, padding 0, unknown 1\n<pad>\n<unk>\nap", "line 4 is the last; line 1 says 3 tokens"),
            (
                "3 tokens, padding 0, unknown 1\n<pad>\n<unk>\na\nb\n",
                "line 5 is the last; line 1 says 3 tokens",
            ),
            (
                "3 tokens, padding 0, unknown 1\n<pad>\n<unk>\n<pad>\n",
                "line 4: token '<pad>' is on line 2 already",
            ),
            ("3 tokens, padding 0, unknown 1\n<pad>\n\na\n", "line 3: '' is empty"),
            ("3 tokens, padding 0, unknown 1\n<pad>\n<unk> \na\n", "line 3: '<unk> ' is empty or has a blank"),
            ("3 tokens, padding 0, unknown 1\n<pad>\n<unk>\na\\x\n", "line 4: .* has a backslash that begins no"),
            ("3 tokens, padding 0, unknown 1\n<pad>\n<unk>\n\\u12\n", "line 4: .* has a backslash that begins no"),
            ("3 tokens, padding 0, unknown 1\n<pad>\n<unk>\n\\U00110000\n", "line 4: .* that begins no"),
        ],
    )
    def test_damage_is_refused(self, text, message):
        with pytest.raises(ValueError, match=f"^{message}"):
            Vocabulary.from_text(text)


GLOVE = "the 0.5 -1 2e-1\n. . . 1 2 3\ncat -0.25 +4 .5\n"
KNOWN = Vocabulary(("<pad>", "<unk>", "cat", "dog", ". . .", "the"), pad=0, unknown=1)
NAN = [np.nan] * 3
ROWS = np.array([NAN, NAN, [-0.25, 4, 0.5], NAN, [1, 2, 3], [0.5, -1, 0.2]], np.float32)


@pytest.fixture
def written(tmp_path):
    """Writes a file of vectors and gives its path."""

    def write(content):
        path = tmp_path / "vectors.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


class TestVectors:
    @pytest.mark.parametrize(
        "content",
        [
            GLOVE,
            GLOVE.rstrip("\n"),
            "3 3\n" + GLOVE,  # word2vec
            "3 3\n" + GLOVE.replace("\n", " \n"),  # fastText ends its lines with a blank
            GLOVE.replace("\n", "\r\n"),
            GLOVE + "the 9 9 9\ncat x y z\n",  # the first line of a word counts
            GLOVE + "new york 1 2 3\nêté 1 2 3\n",
            "1 1 2 3\n" + GLOVE,  # a number is a word too
        ],
    )
    def test_rows_are_those_of_the_file(self, written, content):
        vectors = embeddings.read(written(content), KNOWN)
        np.testing.assert_array_equal(vectors.values, ROWS, strict=True)
        np.testing.assert_array_equal(vectors.found, [False, False, True, False, True, True])
        assert vectors.coverage == 0.5

    def test_a_file_is_read_line_by_line(self, written):
        lines = "".join(f"w{number} {number} {number}.5\n" for number in range(20_000))
        path = written(lines)
        tracemalloc.start()
        vectors = embeddings.read(path, Vocabulary(("<pad>", "<unk>", "w19999"), pad=0, unknown=1))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        np.testing.assert_array_equal(vectors.values[2], np.array([19_999, 19_999.5], np.float32))
        assert peak < len(lines) / 2

    @pytest.mark.parametrize(
        "content, message",
        [
            ("", "line 1: needs a word and its numbers"),
            ("the cat sat\n", "line 1: needs a word and its numbers"),
            ("3 0\n", "line 1: needs a word and its numbers"),
            (GLOVE + "dog 1 2\n", r"line 4: needs a word and 3 numbers.*'dog 1 2'"),
            (GLOVE + "other 1 2 3 4\n", "line 4: needs a word and 3 numbers"),
            ("3 3\n" + GLOVE + "other 1 2\n", "line 5: needs a word and 3 numbers"),
            (GLOVE + "\n", "line 4: needs a word and 3 numbers.*has ''"),
            (GLOVE + "dog 1 2 x\n", "line 4: could not convert .*'x'; download"),
            (GLOVE + "dog 1 nan 3\n", "line 4: has a number that is not finite"),
            (GLOVE + "dog 1 1e39 3\n", "line 4: has a number that is not finite"),
            (GLOVE.encode() + b"\xff\xfe 1 2 3\n", "line 4: is not UTF-8"),
            ("chat 1 2 3\nchien 4 5 6\n", "has none of the vocabulary's tokens"),
            ("2 3\n", "has none of the vocabulary's tokens"),
        ],
    )
    def test_other_files_are_refused(self, written, content, message):
        with pytest.raises(SettingError, match=rf"^embeddings = '.*vectors\.txt': {message}"):
            embeddings.read(written(content), KNOWN)

    def test_a_missing_file_is_named(self, tmp_path):
        for path, reason in ((tmp_path / "gone.txt", "No such file"), (tmp_path, "Is a directory")):
            with pytest.raises(SettingError, match=f"^embeddings = '{path}': {reason}.*GloVe"):
                embeddings.read(path, KNOWN)
