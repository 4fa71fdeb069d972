from serveprune.config.sparsity import SparsitySchedule


def sparsities(schedule: SparsitySchedule, *, start: float, target: float) -> tuple[float, ...]:
    """Return the sparsity after each round, the last one being the target.

    Cubic, as Zhu and Gupta (1710.01878): ``target + (start - target) * (1 - t / rounds) ** 3``. Much redundancy goes
    in the first rounds, and little at a time when little is left.

    Args:
        schedule: How many rounds, and the curve.
        start: Zeros / weights of the graph as it comes.
        target: Zeros / weights in the end.
    """
    exponent = 3 if schedule.curve == "cubic" else 1
    return tuple(
        target + (min(start, target) - target) * (1 - done / schedule.rounds) ** exponent
        for done in range(1, schedule.rounds + 1)
    )
