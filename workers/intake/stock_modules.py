"""What a pickled module may be made of: classes of ``torch.nn``, and the functions these keep as an activation.

The scan reads it without torch; the loader gives the same names to torch's restricted unpickler. Losses and lazy
modules are left out: no model that is ready to run contains them.
"""

from __future__ import annotations

from workers.intake.pickles import ALLOWED, words

_CLASSES = {
    "activation": words(
        "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish "
        "MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink "
        "Softsign Tanh Tanhshrink Threshold"
    ),
    "batchnorm": words("BatchNorm1d BatchNorm2d BatchNorm3d"),
    "channelshuffle": words("ChannelShuffle"),
    "container": words("ModuleDict ModuleList ParameterDict ParameterList Sequential"),
    "conv": words("Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"),
    "distance": words("CosineSimilarity PairwiseDistance"),
    "dropout": words("AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout"),
    "flatten": words("Flatten Unflatten"),
    "fold": words("Fold Unfold"),
    "instancenorm": words("InstanceNorm1d InstanceNorm2d InstanceNorm3d"),
    "linear": words("Bilinear Identity Linear NonDynamicallyQuantizableLinear"),
    "normalization": words("CrossMapLRN2d GroupNorm LayerNorm LocalResponseNorm RMSNorm"),
    "padding": frozenset(
        f"{kind}Pad{rank}d" for kind in words("Circular Constant Reflection Replication Zero") for rank in (1, 2, 3)
    ),
    "pixelshuffle": words("PixelShuffle PixelUnshuffle"),
    "pooling": words(
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
        "AvgPool1d AvgPool2d AvgPool3d FractionalMaxPool2d FractionalMaxPool3d LPPool1d LPPool2d LPPool3d "
        "MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d"
    ),
    "rnn": words("GRU GRUCell LSTM LSTMCell RNN RNNCell"),
    "sparse": words("Embedding EmbeddingBag"),
    "transformer": words(
        "Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer"
    ),
    "upsampling": words("Upsample UpsamplingBilinear2d UpsamplingNearest2d"),
}
# Exactly the names that pickle writes. torch.relu and the like are pickled as a call of getattr, which is refused.
_FUNCTIONS = words("relu silu elu selu celu leaky_relu tanh sigmoid hardtanh relu6 mish hardswish hardsigmoid")
_BUILT_IN = words("gelu softplus")

MODULES = frozenset(f"torch.nn.modules.{file}.{name}" for file, names in _CLASSES.items() for name in names)
ACTIVATIONS = frozenset(
    {*(f"torch.nn.functional.{name}" for name in _FUNCTIONS), *(f"torch._C._nn.{name}" for name in _BUILT_IN)}
)
STOCK = ALLOWED | MODULES | ACTIVATIONS | {"builtins.set", "__builtin__.set"}
"""Every name that a stock module's pickle may use."""
