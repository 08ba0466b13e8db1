"""GIFs keep their colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from spatia_env.video import write_gif


def test_a_small_bright_thing_keeps_its_colour_in_a_gif(tmp_path):
    rng = np.random.default_rng(4)
    frames = []
    for i in range(6):
        frame = (rng.normal((150, 120, 110), 12, (64, 192, 3)) + np.linspace(-60, 60, 192)[None, :, None]).clip(0, 255).astype(np.uint8)
        frame[40:48, 20 + 4 * i : 28 + 4 * i] = (230, 30, 140)
        frames.append(frame)
    write_gif(tmp_path / "a.gif", frames, 8.0)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 6
        for i in range(6):
            gif.seek(i)
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown[42:46, 22 + 4 * i : 26 + 4 * i] - (230, 30, 140)).max() < 25
            assert np.abs(shown - frames[i].astype(int)).mean() < 12
