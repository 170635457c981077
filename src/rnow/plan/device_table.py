"""What GPUs can do, and how much of it is used: the one table that estimates of time are made from.

Peaks are as makers say them: dense bfloat16 products, and memory. The shares of them are
`measured` on an H100 (docs/gpu.md) or `estimated`, and no more than that for other GPUs:

    training, LoRA      26 %   measured: 24 % on 8,192 tokens, 28 % on 32,768
    scoring, matrices   66 %   estimated
    scoring, attention  51 %   estimated
    decoding, memory    85 %   estimated, and 2.3 ms a token for what is no reading
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One kind of GPU. Device(name="H100", tflops=989.0, tb_s=3.35)"""

    name: str
    tflops: float  # dense, bfloat16
    tb_s: float  # terabytes a second, to and from its memory

    @property
    def flops(self) -> float:
        return self.tflops * 1e12

    @property
    def bytes_s(self) -> float:
        return self.tb_s * 1e12


# The first name that is found in a GPU's counts.
DEVICES = (
    Device(name="B200", tflops=2250.0, tb_s=8.0),
    Device(name="H200", tflops=989.0, tb_s=4.8),
    Device(name="H100 PCIe", tflops=756.0, tb_s=2.0),
    Device(name="H100", tflops=989.0, tb_s=3.35),
    Device(name="H20", tflops=148.0, tb_s=4.0),
    Device(name="A100-PCIE-40GB", tflops=312.0, tb_s=1.56),
    Device(name="A100-SXM4-40GB", tflops=312.0, tb_s=1.56),
    Device(name="A100", tflops=312.0, tb_s=2.04),
    Device(name="L40S", tflops=362.0, tb_s=0.864),
    Device(name="RTX 6000 Ada", tflops=364.0, tb_s=0.96),
    Device(name="RTX 4090", tflops=165.0, tb_s=1.01),
    Device(name="RTX 3090", tflops=71.0, tb_s=0.936),
    Device(name="A10", tflops=125.0, tb_s=0.6),
    Device(name="L4", tflops=121.0, tb_s=0.3),
)
UNKNOWN_AS = "A100"

TRAINED_SHARE = 0.26
TRAINED_SHARE_FLOAT32 = 0.03  # measured
SCORED_SHARE = 0.66
ATTENTION_SHARE = 0.51
READ_SHARE = 0.85
TOKEN_OVERHEAD_S = 0.0023


def find_device(gpu: str) -> Device | None:
    """Return the table's row for a GPU by the name that its driver gives it; None: there is none.

    >>> find_device("NVIDIA H100 80GB HBM3").tflops
    989.0
    """
    return next((device for device in DEVICES if device.name in gpu), None)


def device_or_other(gpu: str) -> tuple[Device, str]:
    """Return a GPU's row, or the one that it is taken for, and a phrase that says which."""
    device = find_device(gpu)
    if device is not None:
        return device, f"{device.name} from the device table"
    other = find_device(UNKNOWN_AS)
    assert other is not None
    return other, f"{gpu} is in no table: as an {UNKNOWN_AS}"
