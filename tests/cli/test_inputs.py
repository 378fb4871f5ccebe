"""What commands read: every file is explained as it is, or refused by name."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from captum_transformer_lrp import examples
from captum_transformer_lrp.cli.files import photos_in
from captum_transformer_lrp.photos import read_photo

SCENES = ("--model", "bundled/scenes")
RAMP = np.tile(np.arange(256, dtype=np.uint8), (16, 1))


def read_array(image: Image.Image, path: Path) -> np.ndarray:
    image.save(path)
    return np.asarray(read_photo(path))


@pytest.mark.parametrize(
    ("array", "suffix"),
    [
        (RAMP.astype(np.uint16) * 257, "png"),
        (RAMP.astype(np.uint16) * 257, "tif"),
        (RAMP.astype(">u2") * 257, "tif"),
        (RAMP.astype(np.float32) / 255, "tif"),
    ],
)
def test_deep_images_are_scaled_rather_than_clipped(
    tmp_path: Path, array: np.ndarray, suffix: str
) -> None:
    read = read_array(Image.fromarray(array), tmp_path / f"ramp.{suffix}")
    np.testing.assert_array_equal(read, np.repeat(RAMP[..., None], 3, axis=-1))


def test_a_portable_graymap_of_16_bits_is_scaled(tmp_path: Path) -> None:
    pixels = (RAMP.astype(">u2") * 257).tobytes()
    (tmp_path / "ramp.png").write_bytes(b"P5 256 16 65535\n" + pixels)
    np.testing.assert_array_equal(np.asarray(read_photo(tmp_path / "ramp.png"))[..., 0], RAMP)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RAMP.astype(np.int32), "32-bit integers of an unknown range"),
        (RAMP.astype(np.float32), "its numbers reach from 0 to 255, expected 0 to 1"),
        (RAMP.astype(np.float32) / 255 - 0.5, "its numbers reach from -0.5"),
        (np.full((2, 2), np.nan, dtype=np.float32), "its numbers reach from nan"),
        (np.full((2, 2), np.inf, dtype=np.float32), "expected 0 to 1"),
    ],
)
def test_numbers_of_an_unknown_range_are_refused(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"deep\.tif as an image \(.*{message}"):
        read_array(Image.fromarray(array), tmp_path / "deep.tif")


def test_a_16_bit_picture_is_explained(run: Callable[..., Result], tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "ramp.png")
    result = run("explain", "image", "ramp.png", *SCENES, "--output", "out.png")
    assert result.exit_code == 0, result.output


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Three scenes, one after the other."""
    frames = [Image.fromarray(scene.image) for scene in examples.scenes()[:3]]
    for name in ("film.gif", "film.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    return tmp_path / "film.gif"


def test_every_picture_of_a_tiff_is_read(film: Path) -> None:
    photos = photos_in([film.with_suffix(".tif")], [])
    assert [photo.frame for photo in photos] == [0, 1, 2]
    for photo, scene in zip(photos, examples.scenes()[:3], strict=True):
        np.testing.assert_array_equal(read_photo(photo.path, frame=photo.frame), scene.image)


def test_frames_are_chosen_and_none_is_skipped_in_silence(
    run: Callable[..., Result], film: Path
) -> None:
    expected = [np.asarray(read_photo(film, frame=frame)) for frame in range(3)]
    assert not np.array_equal(expected[0], expected[2])
    fast = ("--top-k", "1", "--method", "attention_rollout")
    command = ["explain", "image", film.name, *SCENES, *fast, "--json"]
    first = run(*command)
    assert f"{film.name} holds 3 pictures, and the first is explained" in first.stderr
    printed = json.loads(run(*command, "--frame", "all", "--output", "all").stdout)["results"]
    assert len({each["output"] for each in printed}) == 3
    chosen = json.loads(run(*command, "--frame", "2").stdout)
    assert chosen["image"] == f"{film.name}, frame 2"
    assert chosen["predictions"] == printed[2]["predictions"]
    assert json.loads(first.stdout)["predictions"] == printed[0]["predictions"]
    two = json.loads(run(*command, "--frame", "2", "--frame", "0", "--output", "2").stdout)
    assert [each["predictions"] for each in two["results"]] == [
        chosen["predictions"],
        printed[0]["predictions"],
    ]


def test_a_frame_that_is_not_there_is_told(run: Callable[..., Result], film: Path) -> None:
    result = run("explain", "image", film, *SCENES, "--frame", "3")
    assert result.exit_code == 1
    assert "found frame 3, expected one of its 3, 0 to 2" in result.stderr
    result = run("explain", "image", film, *SCENES, "--frame", "last")
    assert result.exit_code == 2
    assert "found --frame last, expected a number from 0, or all" in result.stderr
    result = run("compare", "image", film, *SCENES, "--frame", "1", "--method", "saliency")
    assert result.exit_code == 0, result.output
    result = run(
        *("report", film, "--image-model", "bundled/scenes", "--frame", "all"),
        *("--method", "attention_rollout", "--output", "page.html"),
    )
    assert "explained 3 of 3" in result.stdout
    assert "film.gif-frame-2" in (film.parent / "page.html").read_text(encoding="utf-8")


def _damaged_exif() -> bytes:
    """A resolution whose type is another than its value's."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 1.5
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG", exif=exif)
    data = bytearray(file.getvalue())
    data[data.index(b"Exif") + 29] = 0
    return bytes(data)


def test_a_photo_with_damaged_exif_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(_damaged_exif())
    with pytest.raises(ValueError, match=r"cannot read .*x\.jpg as an image"):
        read_photo(tmp_path / "x.jpg")


@pytest.fixture
def failing_decoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Makes Pillow raise an error for the file called "a & b.png"."""
    convert = Image.Image.convert

    def break_with(error: Exception) -> None:
        def fail(image: Image.Image, *arguments: object) -> Image.Image:
            if "a & b" in str(getattr(image, "filename", "")):
                raise error
            return convert(image, *arguments)

        monkeypatch.setattr("PIL.ImageOps.exif_transpose", lambda image: image)
        monkeypatch.setattr(Image.Image, "convert", fail)

    return break_with


@pytest.mark.parametrize(
    "error", [struct.error("short"), MemoryError(), SyntaxError("x"), RecursionError(), KeyError(1)]
)
def test_whatever_a_decoder_raises_names_the_file(
    failing_decoder: Callable[[Exception], None], mixed: Path, error: Exception
) -> None:
    failing_decoder(error)
    with pytest.raises(ValueError, match=r"cannot read .*a & b\.png as an image \("):
        read_photo(mixed / "a & b.png")


def test_one_file_that_cannot_be_decoded_does_not_stop_the_others(
    run: Callable[..., Result],
    failing_decoder: Callable[[Exception], None],
    mixed: Path,
    tmp_path: Path,
) -> None:
    failing_decoder(MemoryError())
    result = run("explain", "image", mixed, *SCENES, "--output", tmp_path / "maps")
    assert result.exit_code == 1
    assert "a & b.png: cannot read" in result.stderr
    assert "explained 1 of 3" in result.stdout


def test_links_to_nothing_loops_and_pipes_are_named(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    folder = tmp_path / "g"
    (folder / "sub.png").mkdir(parents=True)
    Image.fromarray(examples.scenes()[0].image).save(folder / "good.png")
    (folder / "review.txt").write_text("good")
    for suffix in ("png", "txt"):
        (folder / f"gone.{suffix}").symlink_to("/nonexistent")
        (folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
        (folder / f"zero.{suffix}").symlink_to("/dev/zero")
        os.mkfifo(folder / f"pipe.{suffix}")
    image = run("explain", "image", "g", *SCENES, "--output", "out")
    text = run("explain", "text", "--file", "g", "--output", "pages")
    for result, suffix in ((image, "png"), (text, "txt")):
        assert result.exit_code == 1
        for name, what in {
            "gone": "a link that leads nowhere",
            "loop": "a link that leads nowhere",
            "pipe": "a pipe",
            "zero": "a device",
        }.items():
            assert f"failed: g/{name}.{suffix}: cannot read" in result.stderr
            assert f"it is {what}" in result.stderr
        assert "explained 1 of 5" in result.stdout
    # The folder, the review and the broken text files.
    assert "left out of g: gone.txt, loop.txt, pipe.txt and 3 more" in image.stderr
    page = run("report", "g", "--image-model", "bundled/scenes", "--method", "attention_rollout")
    assert "explained 2 of 10" in page.stdout
    for name in ("gone.png", "pipe.png"):
        alone = run("explain", "image", f"g/{name}", *SCENES)
        assert alone.exit_code == 2
        assert f"found no image file at g/{name}: it is a" in alone.stderr


def test_the_limit_on_pixels_can_be_raised(run: Callable[..., Result], tmp_path: Path) -> None:
    Image.new("L", (400, 300)).save(tmp_path / "large.png")
    command = ["explain", "image", "large.png", *SCENES]
    result = run(*command, "--max-pixels", "119999")
    assert result.exit_code == 1
    assert "more than 119999 pixels: make it smaller, or raise --max-pixels" in result.stderr
    assert run(*command, "--max-pixels", "120000").exit_code == 0
    # More than Pillow itself allows, and told by the header alone.
    header = bytearray((tmp_path / "large.png").read_bytes())
    header[16:24] = struct.pack(">II", 20_000, 20_000)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    (tmp_path / "huge.png").write_bytes(header)
    with pytest.raises(ValueError, match=r"huge\.png .*more than 178956970 pixels"):
        read_photo(tmp_path / "huge.png")


def test_the_limit_is_for_every_picture_of_a_file(tmp_path: Path) -> None:
    small, large = Image.new("L", (10, 10)), Image.new("L", (400, 300))
    small.save(tmp_path / "pages.tif", save_all=True, append_images=[large])
    read_photo(tmp_path / "pages.tif", frame=0, max_pixels=1000)
    with pytest.raises(ValueError, match="more than 1000 pixels"):
        read_photo(tmp_path / "pages.tif", frame=1, max_pixels=1000)
    # A picture of a GIF may say that it is larger than the whole.
    small.save(tmp_path / "film.gif", save_all=True, append_images=[Image.new("L", (10, 10), 9)])
    data = bytearray((tmp_path / "film.gif").read_bytes())
    second = data.rindex(b"\x2c\x00\x00\x00\x00")
    data[second + 5 : second + 9] = struct.pack("<HH", 60_000, 60_000)
    (tmp_path / "film.gif").write_bytes(data)
    with pytest.raises(ValueError, match=r"film\.gif .*more than 178956970 pixels"):
        read_photo(tmp_path / "film.gif", frame=1)


def test_no_other_program_reads_a_file(tmp_path: Path) -> None:
    # PostScript, for which Pillow would run Ghostscript.
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    )
    with pytest.raises(ValueError, match="its format is unknown"):
        read_photo(tmp_path / "x.png")


def test_control_characters_in_names_and_texts_are_shown_escaped(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    folder = os.fsencode(tmp_path / "names")
    os.mkdir(folder)
    picture = io.BytesIO()
    Image.fromarray(examples.scenes()[0].image).save(picture, "PNG")
    hostile = ["\x1b[2Jgood.png", "\u202egnp.png"]
    for name in (*map(os.fsencode, hostile), b"\xff.png"):
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(picture.getvalue())
    Path(os.fsdecode(os.path.join(folder, b"\x1b\xff.txt"))).write_bytes(b"")
    command = ["report", "names", "--text", "a \x1b]0;x\x07 \u202efilm"]
    result = run(
        *command, "--image-model", "bundled/scenes", "--method", "attention_rollout",
        "--output", "page.html",
    )  # fmt: skip
    assert result.exit_code == 1
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in (page, result.stderr + result.stdout):
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    for escaped in (r"\x1b[2Jgood.png", r"\u202egnp.png", r"\udcff.png"):
        assert escaped in page
    assert r"\x1b\udcff.txt is empty" in result.stderr
    result = run("explain", "image", "names", *SCENES, "--output", "maps")
    assert result.exit_code == 0
    assert len(os.listdir(tmp_path / "maps")) == 3


def _with_faults(whole: bytes) -> dict[str, bytes]:
    """A file as it is, and damaged in every way that happens to files."""
    half = len(whole) // 2
    return {
        "whole": whole,
        "empty": b"",
        "one byte": whole[:1],
        "header only": whole[:32],
        "half": whole[:half],
        "without its end": whole[:-4],
        "without its beginning": whole[4:],
        "zeros in the middle": whole[:half] + bytes(16) + whole[half + 16 :],
        "ones in the header": whole[:16] + b"\xff" * 8 + whole[24:],
        "zeros in the header": whole[:16] + bytes(8) + whole[24:],
        "text": b"not a photo",
        "another program's": b"%!PS-Adobe-3.0 EPSF-3.0",
        "more after the end": whole + b"\xff" * 64,
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged tags
def test_every_kind_of_file_with_every_fault_is_read_or_named(tmp_path: Path) -> None:
    scene = Image.fromarray(examples.scenes()[0].image)
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    kinds = {"png": scene, "jpg": scene, "webp": scene, "bmp": scene, "gif": scene, "tif": scene}
    for suffix, image in {**kinds, "tiff": deep}.items():
        file = io.BytesIO()
        image.save(file, Image.registered_extensions()[f".{suffix}"])
        for fault, data in _with_faults(file.getvalue()).items():
            path = tmp_path / f"{fault}.{suffix}"
            path.write_bytes(data)
            try:
                assert read_photo(path).mode == "RGB"
            except ValueError as error:
                reason = str(error)
                assert fault != "whole"
                assert reason.startswith(f"cannot read {path} as an image")


@pytest.mark.parametrize(
    "command", [["explain", "text"], ["compare", "text"], ["report", "--text"]]
)
def test_a_text_that_is_no_text_is_an_error_of_one_sentence(
    run: Callable[..., Result], command: list[str]
) -> None:
    # What the shell hands over for bytes that are no UTF-8.
    result = run(*command, "a good \udcff film")
    assert result.exit_code == 2
    assert r"error: the text is not in UTF-8 at letter 8, \udcff: type it again" in result.stderr
