"""Operations on images and features; some have several implementations, of which None picks the fastest."""

from xception_jax.ops.convolution import conv as conv
from xception_jax.ops.depthwise import depthwise_conv as depthwise_conv
from xception_jax.ops.normalization import normalize as normalize
from xception_jax.ops.pooling import avg_pool as avg_pool
from xception_jax.ops.pooling import max_pool as max_pool
from xception_jax.ops.recurrence import project as project
from xception_jax.ops.recurrence import recurrence as recurrence
from xception_jax.ops.segmented import partition as partition
from xception_jax.ops.segmented import segmented_conv as segmented_conv
from xception_jax.ops.windows import IMPLEMENTATIONS as IMPLEMENTATIONS
from xception_jax.ops.windows import Implementation as Implementation
