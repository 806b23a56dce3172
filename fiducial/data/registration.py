"""Laying one image over another: the shift between them, and undoing it.

A *shift* is ``(dy, dx)`` in pixels: what to move ``moving`` by, down and right, so that it lies on ``reference``. So
``apply_shift(moving, shift_between(reference, moving))`` looks like ``reference``, and an image whose content sits
two pixels lower than the reference's has the shift ``(-2, 0)``. (scikit-image's ``phase_cross_correlation`` has the
same sign; it cannot bound its search, which the repeated pads and pins of a board need.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["apply_shift", "shift_between"]

Shift = tuple[float, float]
Floats = npt.NDArray[np.float64]

_STEPS = 20
"""The answer is a multiple of 1 / 20 pixel."""
_FLAT = 1e-6


def shift_between(
    reference: npt.NDArray[np.floating], moving: npt.NDArray[np.floating], *, max_shift: float | None = None
) -> Shift:
    """How far to move ``moving`` down and right so that it lies on ``reference``, to 1/20 pixel.

    Both are grey (H, W) of the same size, in any unit: brightness and contrast do not matter. Phase correlation under
    a Hann window, refined around its peak with a matrix Fourier transform (Guizar-Sicairos et al. 2008). Peaks further
    than ``max_shift`` pixels (a quarter of the shorter side by default) along either axis are not looked at.

    Returns (0, 0) when there is nothing to go by: an image is flat, or moving it makes the two no more alike.

    Raises: ValueError if the shapes differ or are not (H, W), for pixels that are not finite, or ``max_shift`` < 0.
    """
    if reference.shape != moving.shape or reference.ndim != 2:
        raise ValueError(f"two grey images of one size are needed, got {reference.shape} and {moving.shape}")
    limit = min(reference.shape) / 4 if max_shift is None else max_shift
    if limit < 0:
        raise ValueError(f"max_shift must be >= 0, got {max_shift}")
    fixed, moved = _standardised(reference), _standardised(moving)
    if fixed is None or moved is None:
        return 0.0, 0.0
    spectrum = _cross_phase(fixed, moved)
    shift = _fine_peak(spectrum, _coarse_peak(spectrum, limit), limit)
    return shift if _likeness(fixed, moved, shift) > _likeness(fixed, moved, (0.0, 0.0)) else (0.0, 0.0)


def apply_shift(image: npt.NDArray[np.uint8], shift: Shift) -> npt.NDArray[np.uint8]:
    """``image`` (H, W, C), 0..255, moved down by ``shift[0]`` and right by ``shift[1]`` pixels.

    Bilinear, rounded; what comes in from outside repeats the nearest edge pixel.
    """
    moved: npt.NDArray[np.uint8] = np.rint(_moved(image.astype(np.float32), shift)).astype(np.uint8)
    return moved


def _standardised(image: npt.NDArray[np.floating]) -> Floats | None:
    """Mean 0 and deviation 1; None for a flat image."""
    image = image.astype(np.float64)
    if not np.isfinite(image).all():
        raise ValueError("the image has pixels that are not finite")
    centred, scale = image - image.mean(), np.abs(image).max()
    deviation = centred.std()
    return None if deviation <= _FLAT * scale else centred / deviation


def _cross_phase(fixed: Floats, moved: Floats) -> npt.NDArray[np.complex128]:
    """Their cross-power spectrum with every amplitude damped by its root: between plain and phase-only correlation.

    Phase-only listens to noise at frequencies that hold nothing else; plain correlation is dull and drawn to zero.
    """
    window = np.outer(*(np.hanning(size + 2)[1:-1] for size in fixed.shape))
    cross = np.fft.fft2(fixed * window) * np.fft.fft2(moved * window).conj()
    damped: npt.NDArray[np.complex128] = cross / np.sqrt(np.abs(cross) + np.finfo(np.float64).tiny)
    return damped


def _coarse_peak(spectrum: npt.NDArray[np.complex128], limit: float) -> Shift:
    """The whole-pixel shift of the highest correlation within ``limit``."""
    correlation = np.fft.ifft2(spectrum).real
    dy, dx = (np.fft.fftfreq(size, 1 / size) for size in spectrum.shape)
    allowed = (np.abs(dy)[:, None] <= limit) & (np.abs(dx)[None, :] <= limit)
    row, column = np.unravel_index(np.where(allowed, correlation, -np.inf).argmax(), correlation.shape)
    return float(dy[row]), float(dx[column])


def _fine_peak(spectrum: npt.NDArray[np.complex128], coarse: Shift, limit: float) -> Shift:
    """The best multiple of 1 / _STEPS pixel within one pixel of ``coarse``, by an inverse transform there only."""
    grids, waves = [], []
    for centre, size in zip(coarse, spectrum.shape, strict=True):
        grid = centre + np.arange(-_STEPS, _STEPS + 1) / _STEPS
        grid = grid[np.abs(grid) <= limit]
        grids.append(grid)
        waves.append(np.exp(2j * np.pi * np.outer(grid, np.fft.fftfreq(size))))
    correlation = (waves[0] @ spectrum @ waves[1].T).real
    row, column = np.unravel_index(correlation.argmax(), correlation.shape)
    return float(grids[0][row]), float(grids[1][column])


def _likeness(fixed: Floats, moved: Floats, shift: Shift) -> float:
    """Correlation coefficient of the two where they overlap after ``shift``; -1 if that is flat."""
    inside = tuple(
        slice(max(0, int(np.ceil(distance))), size + min(0, int(np.floor(distance))))
        for distance, size in zip(shift, fixed.shape, strict=True)
    )
    one, other = fixed[inside], _moved(moved, shift)[inside]
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm else -1.0


def _moved(image: npt.NDArray[np.floating], shift: Shift) -> npt.NDArray[np.floating]:
    for axis, distance in enumerate(shift):
        last = image.shape[axis] - 1
        source = np.clip(np.arange(last + 1) - distance, 0, last)
        low = np.floor(source).astype(np.intp)
        weight = (source - low).astype(image.dtype).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
        near, far = image.take(low, axis), image.take(np.minimum(low + 1, last), axis)
        image = near + (far - near) * weight
    return image
