"""From videos of any kind to training clips: `spatia prepare`.

footage (a video with what is known of it) <- datasets, recorded (where it comes from); shots (what is usable); tools (perception, latents);
build (footage to clips); run (many videos, in parallel, resumable).
"""
