"""The command line: a demo that ends with its files and figures, and one clear line for each wrong input."""

import json
import shutil
import struct
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from synccache.cli import app
from synccache.portrait.load import WEIGHTS

FILES = {"portrait.mp4", "contact_sheet.png", "plan.json", "plan.txt", "report.json"}
FAST = ["--steps", "6", "--mem-budget", "1GB"]


def demo(out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["demo", "--out", str(out), *FAST, *options])


def speech(path: Path, seconds: float = 0.8, rate: int = 8_000, channels: int = 1) -> Path:
    """A WAV file with bursts of a voice-like buzz."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 140 * part * time) / part for part in range(1, 12))
    samples = 0.2 * buzz * (np.sin(2 * np.pi * 3 * time) > 0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat((samples * 20_000).astype("<i2"), channels).tobytes())
    return path


def assert_refused(result: Result, out: Path, *words: str) -> None:
    """One line on stderr with these words, a non-zero exit, and no file left behind."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert [word for word in words if word.lower() not in line.lower()] == []
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One short run with stereo speech at an odd rate, and its report on stdout."""
    folder = tmp_path_factory.mktemp("demo")
    audio = speech(folder / "speech.wav", rate=11_025, channels=2)
    result = demo(folder / "out", "--audio", str(audio), "--json", "--seed", "3")
    assert result.exit_code == 0, result.output
    return folder / "out", result


def test_the_demo_writes_its_files_and_nothing_else(finished: tuple[Path, Result]) -> None:
    out, _ = finished

    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_json_is_all_that_stdout_holds_and_equals_the_report(
    finished: tuple[Path, Result],
) -> None:
    out, result = finished
    printed = json.loads(result.stdout)

    assert printed == json.loads((out / "report.json").read_text())
    assert printed["settings"]["steps"] == 6
    assert printed["settings"]["seed"] == 3
    assert {len(letters) for letters in printed["decisions_per_window"][0].values()} == {6}
    assert 0 < printed["executed_fraction"] <= 1
    assert printed["bytes_held"] > 0
    assert set(printed["quality"]["psnr_db"]) == {"whole", "person", "mouth", "background"}


def test_the_video_has_sound_and_the_sheet_is_a_picture(finished: tuple[Path, Result]) -> None:
    out, result = finished
    with av.open(str(out / "portrait.mp4")) as container:
        images = sum(1 for _ in container.decode(video=0))
        kinds = {stream.type for stream in container.streams}
    with Image.open(out / "contact_sheet.png") as sheet:
        width, _ = sheet.size

    assert images == json.loads(result.stdout)["clip"]["frames"]
    assert kinds == {"video", "audio"}
    assert width > 1000


def test_the_table_ends_a_run_without_json(tmp_path: Path) -> None:
    audio = speech(tmp_path / "speech.wav")
    result = demo(tmp_path / "out", "--audio", str(audio), "--policy", "exact")

    assert result.exit_code == 0, result.output
    assert "times faster" in result.stdout
    assert "identical" in result.stdout


def test_silence_without_guidance_is_a_run_with_one_call_per_step(tmp_path: Path) -> None:
    silence = struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 16_000, 2, 16)
    body = b"WAVEfmt " + silence + b"data" + struct.pack("<I", 8_000) + bytes(8_000)
    (tmp_path / "silence.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    options = ["--audio", str(tmp_path / "silence.wav"), "--guidance", "1", "--json"]
    result = demo(tmp_path / "out", *options)

    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["decisions_per_window"][0]) == 1


def test_the_threshold_and_the_cache_ratio_reach_the_compiler(tmp_path: Path) -> None:
    audio = str(speech(tmp_path / "speech.wav", seconds=0.3))
    options = ["--audio", audio, "--threshold", "1e-9", "--cache-ratio", "0.2", "--steps", "3"]
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out"), "--json", *options])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["decisions_per_window"][0]["with audio"] == "CCC"
    assert report["settings"]["mem_budget"] is None
    assert "Absorbed into regions" in (tmp_path / "out" / "plan.txt").read_text()


def test_weights_that_hold_nan_are_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    weights = load_file(tmp_path / "weights" / "transformer.safetensors")
    weights["head.weight"][0, :3] = torch.nan
    save_file(weights, tmp_path / "weights" / "transformer.safetensors")
    result = demo(tmp_path / "out", "--weights", str(tmp_path / "weights"))

    assert_refused(result, tmp_path / "out", "head.weight", "3 values", "NaN")


def test_absent_weights_are_refused(tmp_path: Path) -> None:
    result = demo(tmp_path / "out", "--weights", str(tmp_path))

    assert_refused(result, tmp_path / "out", "no weights", "transformer.safetensors")


def test_a_missing_audio_file_is_refused(tmp_path: Path) -> None:
    result = demo(tmp_path / "out", "--audio", str(tmp_path / "absent.wav"))

    assert_refused(result, tmp_path / "out", "absent.wav", "no such file")


def test_an_empty_audio_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    result = demo(tmp_path / "out", "--audio", str(tmp_path / "empty.wav"))

    assert_refused(result, tmp_path / "out", "empty.wav")


def test_audio_without_samples_is_refused(tmp_path: Path) -> None:
    result = demo(tmp_path / "out", "--audio", str(speech(tmp_path / "none.wav", seconds=0)))

    assert_refused(result, tmp_path / "out", "empty")


def test_audio_that_holds_no_number_is_refused(tmp_path: Path) -> None:
    samples = np.full(8_000, np.nan, np.float32).tobytes()
    header = struct.pack("<IHHIIHH", 16, 3, 1, 8_000, 32_000, 4, 32)
    body = b"WAVEfmt " + header + b"data" + struct.pack("<I", len(samples)) + samples
    (tmp_path / "nan.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    result = demo(tmp_path / "out", "--audio", str(tmp_path / "nan.wav"))

    assert_refused(result, tmp_path / "out", "NaN")


def test_a_file_that_is_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("these are not samples, only words\n" * 20)
    result = demo(tmp_path / "out", "--audio", str(tmp_path / "notes.wav"))

    assert_refused(result, tmp_path / "out", "notes.wav", "not a WAV file")


def test_a_folder_given_as_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    result = demo(tmp_path / "out", "--audio", str(tmp_path / "folder.wav"))

    assert_refused(result, tmp_path / "out", "folder.wav")


@pytest.mark.parametrize("amount", ["24 gigs", "-1", "0GB", "lots", ""])
def test_a_malformed_budget_is_refused(tmp_path: Path, amount: str) -> None:
    result = demo(tmp_path / "out", "--mem-budget", amount)

    assert_refused(result, tmp_path / "out", repr(amount), "24GB")


def test_a_budget_that_is_too_small_is_refused_with_what_would_do(tmp_path: Path) -> None:
    result = demo(tmp_path / "out", "--mem-budget", "1KB")

    assert_refused(result, tmp_path / "out", "1.00 KB", "MB")


@pytest.mark.parametrize("ratio", ["0", "1.5", "-0.4", "nan"])
def test_a_cache_ratio_outside_0_to_1_is_refused(tmp_path: Path, ratio: str) -> None:
    result = CliRunner().invoke(
        app, ["demo", "--out", str(tmp_path / "out"), "--cache-ratio", ratio]
    )

    assert_refused(result, tmp_path / "out", "cache_ratio")


def test_an_unknown_policy_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    result = demo(tmp_path / "out", "--policy", "asymetric")

    assert_refused(result, tmp_path / "out", "asymetric", "did you mean 'asymmetric'?")


def test_a_threshold_for_a_policy_that_has_none_is_refused(tmp_path: Path) -> None:
    result = demo(tmp_path / "out", "--policy", "exact", "--threshold", "0.1")

    assert_refused(result, tmp_path / "out", "exact", "threshold")


@pytest.mark.parametrize("steps", ["1", "0", "-3"])
def test_fewer_than_two_steps_are_refused(tmp_path: Path, steps: str) -> None:
    result = demo(tmp_path / "out", "--steps", steps)

    assert_refused(result, tmp_path / "out", "steps", "at least 2")


@pytest.mark.parametrize("guidance", ["nan", "inf", "-1"])
def test_guidance_that_is_no_strength_is_refused(tmp_path: Path, guidance: str) -> None:
    result = demo(tmp_path / "out", "--guidance", guidance)

    assert_refused(result, tmp_path / "out", "guidance")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = demo(tmp_path / "file" / "out")

    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "file" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_nobody_may_write_is_refused(tmp_path: Path) -> None:
    result = demo(Path("/proc/synccache-demo"))

    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "/proc" in result.stderr
