"""Write data/japanese_vowels.npz from the two `.ts` text files of the Japanese Vowels set.

Usage:
    python examples/convert_japanese_vowels.py JapaneseVowels_TRAIN.ts JapaneseVowels_TEST.ts

In a `.ts` file a recording is one line: 12 comma-separated channels, then the speaker, all joined
by colons. The converter refuses input whose lengths or speaker counts differ from the documented.
"""

import argparse
from pathlib import Path

import numpy as np

NUM_FEATURES = 12
NUM_SPEAKERS = 9
TRAIN_COUNTS = [30] * NUM_SPEAKERS
TEST_COUNTS = [31, 35, 88, 44, 29, 24, 40, 50, 29]
DESTINATION = Path(__file__).parent / "data" / "japanese_vowels.npz"


def read_recordings(path: Path, counts: list[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Read one `.ts` file.

    Args:
        path: the text file.
        counts: recordings expected of each speaker.

    Returns:
        The recordings, float32 `[T, 12]` each, and the speakers, int64 `[R]`, counted from 0.

    Raises:
        ValueError: a recording or a speaker count is not as documented.
    """
    recordings: list[np.ndarray] = []
    speakers: list[int] = []
    for line in path.read_text().splitlines():
        if not line or line[0] in "#@":
            continue
        *channels, speaker = line.split(":")
        frames = np.array([channel.split(",") for channel in channels], dtype=np.float32).T
        if frames.shape[1] != NUM_FEATURES or not 7 <= len(frames) <= 29:
            raise ValueError(f"{path.name}: expected [7..29, 12] frames, got {frames.shape}")
        if not np.isfinite(frames).all():
            raise ValueError(f"{path.name}: recording {len(recordings)} holds NaN or Inf")
        recordings.append(frames)
        speakers.append(int(speaker) - 1)
    got = np.bincount(speakers, minlength=NUM_SPEAKERS).tolist()
    if got != counts:
        raise ValueError(f"{path.name}: expected {counts} recordings per speaker, got {got}")
    return recordings, np.array(speakers, dtype=np.int64)


def main() -> None:
    """Convert the two files named on the command line."""
    parser = argparse.ArgumentParser(description="Write data/japanese_vowels.npz.")
    parser.add_argument("train", type=Path, help="JapaneseVowels_TRAIN.ts, 270 recordings")
    parser.add_argument("test", type=Path, help="JapaneseVowels_TEST.ts, 370 recordings")
    args = parser.parse_args()

    train, train_speakers = read_recordings(args.train, TRAIN_COUNTS)
    test, test_speakers = read_recordings(args.test, TEST_COUNTS)
    recordings = train + test
    np.savez_compressed(
        DESTINATION,
        frames=np.concatenate(recordings),
        lengths=np.array([len(frames) for frames in recordings], dtype=np.int64),
        labels=np.concatenate([train_speakers, test_speakers]),
        is_train=np.arange(len(recordings)) < len(train),
    )


if __name__ == "__main__":
    main()
