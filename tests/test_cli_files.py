"""What the demo writes: folders that appear whole or not at all, videos with sound, pictures, JSON."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from synccache.demo.comparison import Clip, Comparison, Quality, Settings, Work, report
from synccache.demo.drawing import difference
from synccache.demo.folder import written_whole
from synccache.demo.pictures import contact_sheet, video_pictures
from synccache.demo.table import table
from synccache.demo.video import write_video

FRAMES, SIZE, FRAME_RATE, SAMPLE_RATE = 32, 64, 20, 22_050


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    random = np.random.default_rng(0)
    one = random.integers(0, 256, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    mouth = np.abs(np.sin(np.arange(FRAMES) / 3)) * 40
    tone = 0.3 * np.sin(np.arange(2 * SAMPLE_RATE) * 440 * 2 * np.pi / SAMPLE_RATE)
    regions = {"whole": float("inf"), "person": 44.8, "mouth": 42.0, "background": 50.0}
    return Comparison(
        settings=Settings(),
        uncached=Clip(one, mouth),
        compiled=Clip(one, mouth),
        opening=mouth / 40,
        samples=tone.astype(np.float32),
        sample_rate=SAMPLE_RATE,
        frame_rate=FRAME_RATE,
        work=Work(
            28.0,
            10.0,
            50.0,
            18.0,
            1.0,
            0.01,
            0.31,
            1000,
            ({"cond": "CCSSCSSSCC", "uncond": "CCSSCSSSCC"},),
        ),
        quality=Quality(regions, 0.78, float("nan"), 0.995, 0.031, False),
        plan_text="plan",
        plan_json="{}",
    )


def test_a_folder_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    with written_whole(tmp_path / "new" / "out") as part:
        (part / "a.txt").write_text("a")
        assert not (tmp_path / "new" / "out").exists()

    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["a.txt"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_nothing_remains_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError), written_whole(tmp_path / "new" / "out") as part:
        (part / "a.txt").write_text("a")
        raise KeyError

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_keeps_its_other_files_and_its_old_ones_on_failure(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), written_whole(tmp_path) as part:
        (part / "a.txt").write_text("half")
        raise KeyError
    after_failure = (tmp_path / "a.txt").read_text()
    with written_whole(tmp_path) as part:
        (part / "a.txt").write_text("new")

    assert after_failure == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "mine.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_folder_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="is a file"), written_whole(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_a_video_has_every_frame_and_sound_of_the_same_length(
    comparison: Comparison, tmp_path: Path
) -> None:
    pictures = video_pictures(comparison)
    path = tmp_path / "portrait.mp4"
    write_video(path, pictures, FRAME_RATE, comparison.samples, SAMPLE_RATE)

    with av.open(str(path)) as container:
        sound = [frame.to_ndarray() for frame in container.decode(audio=0)]
        container.seek(0)
        images = list(container.decode(video=0))
        seconds = float(container.streams.audio[0].duration * container.streams.audio[0].time_base)
        codecs = [stream.codec_context.name for stream in container.streams]
    assert codecs == ["h264", "aac"]
    assert len(images) == FRAMES
    assert images[0].to_image().size == pictures[0].size
    assert seconds == pytest.approx(FRAMES / FRAME_RATE, abs=0.05)
    assert np.concatenate(sound, axis=1).std() == pytest.approx(0.3 / 2**0.5, rel=0.1)


def test_sound_shorter_than_the_pictures_is_heard_to_its_end(
    comparison: Comparison, tmp_path: Path
) -> None:
    path = tmp_path / "portrait.mp4"
    write_video(path, [Image.new("RGB", (64, 64))] * 20, 20, comparison.samples[:2000], SAMPLE_RATE)

    with av.open(str(path)) as container:
        assert container.streams.audio[0].duration > 0
        assert container.streams.video[0].frames == 20


def test_the_difference_of_equal_frames_is_middle_grey(comparison: Comparison) -> None:
    frame = comparison.uncached.frames[0]

    assert np.unique(difference(frame, frame)).tolist() == [128]


def test_the_contact_sheet_shows_both_clips(comparison: Comparison) -> None:
    sheet = np.asarray(contact_sheet(comparison))

    assert sheet.shape[1] > 8 * 128
    assert (sheet != sheet[0, 0]).mean() > 0.3


def test_the_report_is_json_without_infinities(comparison: Comparison) -> None:
    text = json.dumps(report(comparison, {"synccache": "0"}), allow_nan=False)
    figures = json.loads(text)

    assert figures["quality"]["psnr_db"]["whole"] is None
    assert figures["quality"]["mouth_correlation"]["audio_and_compiled"] is None
    assert figures["seconds"]["ratio"] == pytest.approx(2.8)


def test_the_table_groups_decisions_in_tens_and_names_identical_frames(
    comparison: Comparison,
) -> None:
    cells = [cell for column in table(comparison).columns for cell in column.cells]

    assert "CCSSCSSSCC" in cells
    assert "identical" in cells
    assert "undefined" in cells
