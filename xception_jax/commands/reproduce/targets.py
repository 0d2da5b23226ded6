"""The tables and figures: the runs that each needs, and what the paper or the notebook reports and concludes."""

from xception_jax.commands.reproduce.definitions import IMAGENET, JFT, Network, Target
from xception_jax.commands.reproduce.notebook import RNN_NOTEBOOK

BETTER = "Xception is better (section 4.5.1)."
XCEPTION = Network("xception", "Xception", {"top1": 0.790, "top5": 0.945})
INCEPTION = Network("inception_v3", "Inception V3", {"top1": 0.782, "top5": 0.941})
JFT_XCEPTION = Network("jft_xception", "Xception - no FC layers", {"map100": 0.0670})
JFT_INCEPTION = Network("jft_inception_v3", "Inception V3 - no FC layers", {"map100": 0.0636})
JFT_XCEPTION_FC = Network("jft_xception_fc", "Xception with FC layers", {"map100": 0.0678})
JFT_INCEPTION_FC = Network("jft_inception_v3_fc", "Inception V3 with FC layers", {"map100": 0.0650})

PROFILES = {
    6: ("ImageNet", IMAGENET, (XCEPTION, INCEPTION), "Xception is better at the end (section 4.5.1)."),
    7: ("JFT, without fully connected layers", JFT, (JFT_XCEPTION, JFT_INCEPTION), BETTER),
    8: ("JFT, with fully connected layers", JFT, (JFT_XCEPTION_FC, JFT_INCEPTION_FC), BETTER),
}
TARGETS = {
    "table1": Target(
        "Table 1: classification performance on ImageNet, single crop, single model",
        IMAGENET,
        (
            XCEPTION,
            INCEPTION,
            Network("resnet152", "ResNet-152", {"top1": 0.770, "top5": 0.933}),
            Network("vgg16", "VGG-16", {"top1": 0.715, "top5": 0.901}),
        ),
        "Xception is marginally better than Inception V3 and better than ResNet-152 (section 4.5.1); by the table,"
        " than VGG-16 too.",
        "table",
    ),
    "table2": Target(
        "Table 2: classification performance on JFT, MAP@100 of FastEval14k",
        JFT,
        (JFT_XCEPTION, JFT_INCEPTION, JFT_XCEPTION_FC, JFT_INCEPTION_FC),
        "Xception is better than Inception V3 by 4.3 % of its MAP@100 (section 4.5.1), which is the difference"
        " with fully connected layers; without, the table has 5.3 %.",
        "table",
        (("jft_xception", "jft_inception_v3"), ("jft_xception_fc", "jft_inception_v3_fc")),
    ),
    "table3": Target(
        "Table 3: size and training speed",
        (),
        (INCEPTION, XCEPTION),
        "The sizes differ by less than 3.5 %, and Xception is marginally slower (section 4.5.2).",
        "speed",
    ),
    **{
        f"fig{number}": Target(
            f"Figure {number}: training profile on {where}", measures, networks, claim, "profile"
        )
        for number, (where, measures, networks, claim) in PROFILES.items()
    },
    "fig9": Target(
        "Figure 9: training profile with and without residual connections",
        IMAGENET,
        (XCEPTION, Network("xception_without_residuals", "Xception without residual connections")),
        "Residual connections are essential, for the speed of convergence and at the end (section 4.6).",
        "profile",
        of_convergence=True,
    ),
    "fig10": Target(
        "Figure 10: training profile with activations between depthwise and pointwise convolution",
        IMAGENET,
        (
            Network("xception", "no intermediate activation"),
            Network("xception_relu", "ReLU"),
            Network("xception_elu", "ELU"),
        ),
        "No activation converges faster and ends better (section 4.7).",
        "profile",
        of_convergence=True,
    ),
    "spectrum": Target(
        "The spectrum between regular and separable convolutions at equal parameters (sections 1.2 and 5)",
        IMAGENET,
        (
            Network("xception", "one segment a channel"),
            *(
                Network(f"segments_{number}", f"{number} segment" + "s" * (number > 1))
                for number in (64, 32, 16, 8, 4, 3, 2, 1)
            ),
        ),
        None,
        "spectrum",
        note="A layer with fewer channels than segments has one a channel. At the small scale that makes nearly"
        " all layers of the network of 64 segments depthwise ones, and the first layers of those of 32 and 16.",
    ),
    "rnn_notebook": RNN_NOTEBOOK,
}
