"""Operations with more than one implementation; jax only."""

from xception_jax.ops.depthwise import IMPLEMENTATIONS as IMPLEMENTATIONS
from xception_jax.ops.depthwise import depthwise_conv as depthwise_conv
from xception_jax.ops.segmented import partition as partition
from xception_jax.ops.segmented import segmented_conv as segmented_conv
