"""The world's spatial memory: the map, the keyframes, and how new frames enter both."""
