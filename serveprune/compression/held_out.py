"""Which calibration samples judge a training, so that nothing before it may have learned from them.

Weights fitted in closed form are better on the samples they were fitted to than on others. If those samples judged the
training that follows, its beginning would look better than it is, and nothing that was learned would be kept.
"""

from serveprune.evaluation.dataset import Dataset

HELD_OUT_RATIO = 0.1
"""Part of the calibration samples that `prune` leaves to the judging of later passes."""

FEWEST_SAMPLES = 128
"""With fewer, every sample counts more than a fair judge does, and `prune` learns from all."""

_MOST_HELD_OUT = 512


def parted(calibration: Dataset, *, ratio: float) -> tuple[Dataset, Dataset]:
    """Return what is learned from, and what judges: always the same samples, those of a smaller ratio among them.

    Raises:
        ConfigError: There are fewer than two different samples.
    """
    held_out, learned = calibration.split(min(ratio, _MOST_HELD_OUT / len(calibration)))
    return learned, held_out


def learned_part(calibration: Dataset) -> Dataset:
    """Return what a pass learns from that comes before a training: all but what judges it, and all of a small set."""
    if len(calibration) < FEWEST_SAMPLES:
        return calibration
    return parted(calibration, ratio=HELD_OUT_RATIO)[0]
