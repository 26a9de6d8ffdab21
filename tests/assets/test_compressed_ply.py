"""PlayCanvas's compressed ply is read as the programs read it that write it."""

import math

import numpy as np
import pytest
import torch

from ddpo3d_fast.assets.ply import read_ply, write_ply
from ddpo3d_fast.assets.raw import OPAQUE
from ddpo3d_fast.errors import InputError

BOUNDS = [f"{end}_{of}{axis}" for of in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
COLORS = [f"{end}_{band}" for end in ("min", "max") for band in "rgb"]
WORDS = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
CHUNK = [-1, -2, -3, 4, 5, 6, -9, -8, -7, 1, 2, 3, -0.1, -0.2, -0.3, 1.1, 1.2, 1.3]
# Words, and what splat-transform 3.7.0 makes of them in a chunk of these bounds: x y z, rot_0..3, scale_0..2,
# opacity, f_dc_0..2.
MEASURED = [
    (
        (0xD9C2825F, 0xA30FEBCF, 0x82D9D721, 0x4510BDF8),
        (3.2550073, -1.4525905, -0.33121642, 0.06704727, 0.7001947, 0.30768582, 0.6407507),
        (-3.890083, 0.0742913, 1.9154861, 3.5675187, -0.97589225, -2.1700397, 1.3679172),
    ),
    (
        (0x4ECDE8B8, 0x0A7D3DA9, 0x1342F01D, 0x043B27B6),
        (0.5388373, 1.0449657, -2.191011, 0.7374157, -0.476243, 0.46380124, -0.11957915),
        (-8.24768, -7.081133, -6.8583293, 0.9135472, -2.060217, -1.3331633, -1.9684664),
    ),
    (
        (0x2CDE513B, 0xD0327A78, 0xA6401C4E, 0xE9AA5979),
        (-0.12554958, 4.637341, -1.6150464, -0.34906054, -0.48868474, 0.16658136, 0.7820451),
        (-2.502687, -7.9706745, -1.6165119, -0.10204925, 1.7599425, 0.8271452, -0.85633856),
    ),
    (
        (0x4700374C, 0x50DBC74D, 0xABBE90B0, 0x00B37868),
        (0.3873962, -1.9589443, 5.2129946, -0.33523636, 0.75073534, 0.33385393, 0.4610364),
        (-2.2926233, 1.5601172, -6.1402054, -0.37288895, -2.1269445, 1.0023054, -0.16681929),
    ),
]


def compressed(path, words, sh=None, chunks=(CHUNK,), colors=True, sh_rows=None, layout="little"):
    """A file of packed words [N, 4] and bytes sh [N, K]."""
    names, words = BOUNDS + (COLORS if colors else []), np.asarray(words, np.uint32).reshape(-1, 4)
    lines = ["ply", f"format binary_{layout}_endian 1.0", f"element chunk {len(chunks)}"]
    lines += [f"property float {name}" for name in names] + [f"element vertex {len(words)}"]
    lines += [f"property uint {name}" for name in WORDS]
    end = "<" if layout == "little" else ">"
    body = np.array([row[: len(names)] for row in chunks], end + "f4").tobytes()
    body += words.astype(end + "u4").tobytes()
    if sh is not None:
        lines += [f"element sh {len(sh) if sh_rows is None else sh_rows}"]
        lines += [f"property uchar f_rest_{index}" for index in range(sh.shape[1])]
        body += sh.astype("u1").tobytes()
    path.write_bytes("\n".join([*lines, "end_header", ""]).encode() + body)
    return path


def columns(path):
    """[N, 14] in the file's world: x y z, rot_0..3, scale_0..2, opacity, f_dc_0..2."""
    means, quats, scales, opacities, sh = read_ply(path)
    w, x, y, z = quats.unbind(1)
    quats = torch.stack([-x, w, -z, y], 1)
    means = means * torch.tensor([1, -1, -1])
    return torch.cat([means, quats, scales, opacities[:, None], sh[:, 0]], 1).double().numpy()


@pytest.mark.parametrize("layout", ["little", "big"])
def test_words_mean_what_splat_transform_reads(tmp_path, layout):
    path = compressed(tmp_path / "a.ply", [words for words, *_ in MEASURED], layout=layout)
    expected = np.array([[*first, *second] for _, first, second in MEASURED])
    assert np.abs(columns(path) - expected).max() < 2e-6


def test_without_bounds_colours_lie_between_black_and_white(tmp_path):
    path = compressed(tmp_path / "a.ply", [words for words, *_ in MEASURED[:2]], colors=False)
    expected = [[-0.8132435, -1.5500283, 0.85494834], [-1.7168474, -0.95225954, -1.2302915]]
    assert np.abs(columns(path)[:, -3:] - expected).max() < 2e-6
    assert np.abs(columns(path)[0, :3] - MEASURED[0][1][:3]).max() < 2e-6


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_harmonics_are_bytes_from_minus_4_to_4_channel_by_channel(tmp_path, degree):
    bases = (degree + 1) ** 2 - 1
    sh = np.arange(4 * 3 * bases).reshape(4, 3 * bases) % 256
    sh[:, 0] = (0, 1, 128, 255)
    read = read_ply(compressed(tmp_path / "a.ply", [MEASURED[0][0]] * 4, sh)).sh
    assert read.shape == (4, bases + 1, 3)
    # The first coefficient of the first band changes its sign with y.
    assert (-read[:, 1, 0]).tolist() == [-4, -3.953125, 0.015625, 4]
    value = (sh[2, bases + 2] + 0.5) / 32 - 4
    assert read[2, 3, 1].item() == pytest.approx(value)  # green's third: x, which keeps its sign


def test_every_256_gaussians_have_bounds_of_their_own(tmp_path):
    chunks = [[lower + shift for lower in CHUNK] for shift in (0, 10, 20)]
    read = read_ply(compressed(tmp_path / "a.ply", [MEASURED[0][0]] * 600, chunks=chunks)).means[:, 0]
    assert (read - read[0]).round(decimals=4).tolist() == [0.0] * 256 + [10.0] * 256 + [20.0] * 88


def test_bytes_0_and_255_of_the_opacity_are_clear_and_opaque(tmp_path):
    words = [[0, 0, 0, alpha] for alpha in (0, 255, 128)]
    read = read_ply(compressed(tmp_path / "a.ply", words)).logit_opacities
    assert read.tolist() == [-OPAQUE, OPAQUE, pytest.approx(math.log(128 / 127), rel=1e-4)]


@pytest.mark.parametrize("left_out", range(4))
def test_any_component_of_a_rotation_may_be_left_out(tmp_path, left_out):
    quaternion = np.full(4, 0.3)
    quaternion[left_out] = math.sqrt(1 - 3 * 0.09)
    bits = [round((0.3 * math.sqrt(2) + 1) / 2 * 1023)] * 3
    word = left_out << 30 | bits[0] << 20 | bits[1] << 10 | bits[2]
    assert (
        np.abs(columns(compressed(tmp_path / "a.ply", [[0, word, 0, 0]]))[0, 3:7] - quaternion).max() < 1e-3
    )


def test_what_was_read_can_be_written_as_an_ordinary_ply(tmp_path):
    path = compressed(tmp_path / "a.ply", [words for words, *_ in MEASURED])
    write_ply(tmp_path / "b.ply", *read_ply(path))
    assert np.abs(columns(tmp_path / "b.ply") - columns(path)).max() < 1e-6


def test_a_file_without_gaussians_is_read(tmp_path):
    assert len(read_ply(compressed(tmp_path / "a.ply", [], chunks=())).means) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": ()}, "expected 1 rows of element chunk for 2 vertices, got 0"),
        ({"chunks": (CHUNK, CHUNK)}, "expected 1 rows of element chunk for 2 vertices, got 2"),
        ({"sh": np.zeros((3, 9))}, "expected 2 rows of element sh, got 3"),
        ({"sh": np.zeros((2, 10))}, r"expected 0, 9, 24 or 45 properties f_rest_\*, got 10"),
        ({"chunks": ([math.nan] * 18,)}, "vertex 0: x is nan, expected a finite number"),
        ({"chunks": ([0, 0, 0, math.inf] + [0] * 14,)}, "vertex 0: x is (inf|nan), expected a finite number"),
    ],
)
def test_numbers_that_do_not_fit_are_one_line(tmp_path, change, message):
    path = compressed(tmp_path / "a.ply", [words for words, *_ in MEASURED[:2]], **change)
    with pytest.raises(InputError, match=message) as caught:
        read_ply(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"float max_scale_y", b"float max_scale_w", "no property float max_scale_y of element chunk: not"),
        (b"uint packed_scale", b"uint packed_other", "no property uint packed_scale of element vertex: not"),
        (b"uint packed_color", b"float packed_color", "no property uint packed_color of element vertex: not"),
        (b"uchar f_rest_3", b"short f_rest_3", "no property uchar f_rest_3 of element sh: not a compressed"),
        (b"binary_little_endian", b"ascii", "expected a compressed Gaussian splat to be binary, got ascii"),
        (b"element chunk", b"element clump", "no element chunk: not a compressed"),
    ],
)
def test_a_layout_that_is_not_whole_is_one_line(tmp_path, old, new, message):
    path = compressed(tmp_path / "a.ply", [MEASURED[0][0]], np.zeros((1, 9)))
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(InputError, match=message):
        read_ply(path)


def test_any_cut_of_a_file_is_refused(tmp_path):
    data = compressed(tmp_path / "a.ply", [MEASURED[0][0]] * 3, np.zeros((3, 9))).read_bytes()
    for length in range(len(data)):
        (tmp_path / "b.ply").write_bytes(data[:length])
        with pytest.raises(InputError):
            read_ply(tmp_path / "b.ply")
