"""Numbers: quantiles, ratios, and how they are written."""


def quantile(values, q):
    """The q-quantile of some values (0 to 1), by the nearest rank; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


def ms(seconds):
    """Seconds as milliseconds to read."""
    if seconds is None:
        return "none"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def mib(num_bytes):
    return f"{num_bytes / (1 << 20):.0f} MiB"


def ratio(disturbed, undisturbed):
    """How many times as large; infinite where there is nothing to compare."""
    if not disturbed or not undisturbed:
        return float("inf")
    return disturbed / undisturbed


def slope(points):
    """Of the straight line through (x, y) points by least squares."""
    num = len(points)
    mean_x = sum(x for x, _ in points) / num
    mean_y = sum(y for _, y in points) / num
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def counted(reasons):
    """Counts of equal things, the most frequent first: `3 x 429 queue_full, 1 x time-out`."""
    counts = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} x {reason}" for reason, count in ordered)
