"""Gaussians survive the way through a ply file, and broken files are told from good ones in one line."""

import math
import struct

import numpy as np
import pytest
import torch

from ddpo3d_fast.assets.ply import read_ply, write_ply
from ddpo3d_fast.assets.raw import OPAQUE, THIN, PlyGaussians
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.kernels import rasterize_forward
from ddpo3d_fast.scene import Gaussians, orbit

BASE = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2")
BASE += ("rot_0", "rot_1", "rot_2", "rot_3")


def gaussians(count=7, degree=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, 3), (count, 4), (count, 3), (count,), (count, (degree + 1) ** 2, 3))
    numbers = PlyGaussians(*(torch.randn(shape, generator=generator) for shape in shapes))
    return numbers._replace(quats=torch.nn.functional.normalize(numbers.quats, dim=1))


def header(names=BASE, count=1, layout="ascii", kind="float"):
    lines = ["ply", f"format {layout} 1.0", f"element vertex {count}"]
    return "\n".join([*lines, *(f"property {kind} {name}" for name in names), "end_header", ""])


def ascii_file(tmp_path, text):
    path = tmp_path / "in.ply"
    path.write_text(text)
    return path


# ---- round trips -------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, degree, count):
    original = gaussians(count, degree)
    write_ply(tmp_path / "a.ply", *original)
    for name, got, expected in zip(original._fields, read_ply(tmp_path / "a.ply"), original, strict=True):
        assert torch.equal(got, expected), name
        assert got.is_contiguous()


@pytest.mark.parametrize("length", [1e-30, 0.5, 1.0, 1.5, 1e30])
def test_quaternions_are_written_with_length_one_and_turn_as_before(tmp_path, length):
    original = gaussians(200)
    write_ply(tmp_path / "a.ply", *original._replace(quats=length * original.quats))
    body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1]
    stored = torch.tensor(np.frombuffer(body, "<f4").reshape(200, -1)[:, -4:]).double()
    assert (stored.norm(dim=1) - 1).abs().max() < 2e-7
    assert (read_ply(tmp_path / "a.ply").quats - original.quats).abs().max() < 2e-7


def test_a_quaternion_of_zero_is_no_rotation(tmp_path):
    original = gaussians(3)
    original.quats[1] = 0
    write_ply(tmp_path / "a.ply", *original)
    row = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1], "<f4").reshape(3, -1)[1]
    assert np.linalg.norm(row[-4:]) == 1
    w, x, y, z = read_ply(ascii_file(tmp_path, header() + ROW.replace("1", "0"))).quats[0].tolist()
    assert (w, abs(x), y, z) == (0, 1, 0, 0)  # turned about x, as the whole file is


def test_what_was_read_is_written_as_the_same_bytes(tmp_path):
    write_ply(tmp_path / "a.ply", *gaussians(1000, degree=2)._replace(quats=torch.rand(1000, 4) + 0.1))
    write_ply(tmp_path / "b.ply", *read_ply(tmp_path / "a.ply"))
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_what_was_read_makes_a_scene(tmp_path):
    write_ply(tmp_path / "a.ply", *gaussians(degree=1))
    assert Gaussians(*read_ply(tmp_path / "a.ply")).sh_degree == 1


def test_the_same_scene_gives_the_same_bytes(tmp_path):
    for name in ("a.ply", "b.ply"):
        write_ply(tmp_path / name, *gaussians())
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_the_layout_is_the_one_viewers_expect(tmp_path):
    original = gaussians(2, degree=1)
    write_ply(tmp_path / "a.ply", *original)
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    names = [line.split()[-1] for line in head.decode().splitlines() if line.startswith("property float")]
    assert names == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{index}" for index in range(9)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    assert head.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 2\n")
    row = dict(zip(names, struct.unpack(f"<{len(names)}f", body[: 4 * len(names)]), strict=True))
    assert [row["nx"], row["ny"], row["nz"]] == [0, 0, 0]
    assert row["f_dc_1"] == original.sh[0, 0, 1].item()
    # Channel by channel: f_rest_3..5 are green's three coefficients, of which y and z change sign.
    assert [row[f"f_rest_{index}"] for index in (3, 4, 5)] == (
        original.sh[0, 1:, 1] * torch.tensor([-1.0, -1, 1])
    ).tolist()
    assert row["opacity"] == original.logit_opacities[0].item()
    assert row["scale_2"] == original.log_scales[0, 2].item()


def test_the_file_s_world_is_ours_with_y_down(tmp_path):
    original = gaussians(1)
    write_ply(tmp_path / "a.ply", *original)
    body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1]
    x, y, z = struct.unpack("<3f", body[:12])
    assert [x, -y, -z] == original.means[0].tolist()


@pytest.mark.parametrize("degree", [0, 3])
def test_the_turned_scene_looks_the_same_to_a_turned_camera(tmp_path, degree):
    """What the file holds, rendered as it stands by y-down cameras, is what we render with y up."""
    means, quats, log_scales, logit_opacities, sh = gaussians(30, degree, seed=4)
    write_ply(tmp_path / "a.ply", means * 0.4, quats, log_scales * 0.3 - 2, logit_opacities, sh * 0.3)
    ours = Gaussians(*read_ply(tmp_path / "a.ply"))
    table = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1], "<f4").reshape(30, -1)
    table = torch.tensor(table)
    bases = (degree + 1) ** 2
    higher = table[:, 9 : 9 + 3 * (bases - 1)].reshape(30, 3, bases - 1).transpose(1, 2)
    stored_sh = torch.cat([table[:, None, 6:9], higher], 1).contiguous()
    cameras = orbit(5, elevation=0.4)
    turn = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    out, _ = rasterize_forward(
        table[:, :3].contiguous(), table[:, -4:].contiguous(), table[:, -7:-4].exp(), table[:, -8].sigmoid(),
        stored_sh, cameras.viewmats @ turn, cameras.intrinsics(40, 40), 40, 40, sh_degree=degree,
    )  # fmt: skip
    expected = ours.render(cameras, 40, 40).rgb
    assert expected.std() > 0.05
    assert (out.rgb - expected).abs().max() < 1e-4


@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("kind", ["float", "double", "float64"])
def test_any_property_order_number_type_and_encoding_is_read(tmp_path, layout, kind):
    original = gaussians(5)
    write_ply(tmp_path / "a.ply", *original)
    table = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1], "<f4").reshape(5, -1)
    names = ["x", "y", "z", "nx", "ny", "nz", *BASE[3:]]
    order = np.random.default_rng(0).permutation(len(names))
    head = header([names[index] for index in order], 5, layout, kind).replace(
        "element", "comment made by a test\nobj_info none\nelement"
    )
    if layout == "ascii":
        body = "\n".join(" ".join(repr(float(value)) for value in row[order]) for row in table).encode()
    else:
        end = "<" if "little" in layout else ">"
        body = table[:, order].astype(f"{end}{'f4' if kind == 'float' else 'f8'}").tobytes()
    (tmp_path / "b.ply").write_bytes(head.encode() + body)
    for got, expected in zip(read_ply(tmp_path / "b.ply"), original, strict=True):
        assert torch.equal(got, expected)


def test_infinite_opacities_and_scales_are_read_as_what_they_mean(tmp_path):
    row = "0 0 0 0 0 0 {} {} 0 0 1 0 0 0\n"
    read = read_ply(
        ascii_file(tmp_path, header(count=2) + row.format("inf", "-inf") + row.format("-inf", "0"))
    )
    assert read.logit_opacities.tolist() == [OPAQUE, -OPAQUE]
    assert read.logit_opacities.sigmoid()[0] == 1
    assert read.logit_opacities.sigmoid()[1] < 1e-8
    assert read.log_scales.tolist() == [[THIN, 0, 0], [0, 0, 0]]


def test_what_an_infinite_opacity_stands_for_is_drawn(tmp_path):
    row = "0 0 0 1 1 1 {} {} -2 -2 1 0 0 0\n"
    alphas = []
    for opacity, scale in (("inf", "-2"), ("1000", "-2"), ("inf", "-inf"), ("-inf", "-2")):
        path = ascii_file(tmp_path, header() + row.format(opacity, scale))
        alphas.append(Gaussians(*read_ply(path)).render(orbit(1), 32, 32).alpha)
    opaque, same, disc, clear = alphas
    assert opaque.max() > 0.9
    assert torch.equal(opaque, same)
    assert 0 < disc.sum() < opaque.sum()
    assert clear.max() == 0


def test_foreign_properties_elements_and_line_ends_are_passed_over(tmp_path):
    head = header((*BASE, "red"), kind="float").replace("float red", "uchar red")
    head = head.replace("end_header", "element face 1\nproperty list uchar int vertex_indices\nend_header")
    path = tmp_path / "a.ply"
    path.write_bytes(head.replace("\n", "\r\n").encode() + b"0 0 0 0 0 0 0 0 0 0 1 0 0 0 255\r\n3 0 0 0\r\n")
    assert read_ply(path).means.shape == (1, 3)


@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("place", ["before", "among"])
def test_elements_before_the_vertices_and_lists_among_them_are_passed_over(tmp_path, layout, place):
    original, end = gaussians(3), ">" if "big" in layout else "<"
    write_ply(tmp_path / "a.ply", *original)
    table = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1], "<f4").reshape(3, -1)

    def numbers(values, kind):
        if layout == "ascii":
            return (" ".join(repr(value.item()) for value in np.atleast_1d(values)) + "\n").encode()
        return np.asarray(values).astype(end + kind).tobytes()

    def items(*values):
        return numbers([len(values)], "u2") + numbers(np.array(values), "i4")

    head = header(["x", "y", "z", "nx", "ny", "nz", *BASE[3:]], 3, layout)
    lists = [items(), items(7), items(7, 8, 9)]
    if place == "before":
        before = "element camera 2\nproperty double fov\nproperty list ushort int shape\nproperty char id\n"
        before += "element empty 5\nelement none 0\nproperty list int float x\n"
        head = head.replace("element vertex", before + "element vertex")
        body = numbers([0.5], "f8") + lists[2] + numbers([1], "i1")
        body += numbers([0.7], "f8") + lists[0] + numbers([2], "i1")
        body += b"".join(numbers(row, "f4") for row in table)
    else:
        head = head.replace("property float y", "property list ushort int ids\nproperty float y")
        head = head.replace("end_header", "property list ushort int last\nend_header")
        body = b"".join(
            numbers(row[:1], "f4") + lists[index] + numbers(row[1:], "f4") + lists[2 - index]
            for index, row in enumerate(table)
        )
    (tmp_path / "b.ply").write_bytes(head.encode() + body)
    for got, expected in zip(read_ply(tmp_path / "b.ply"), original, strict=True):
        assert torch.equal(got, expected)
    for length in range(len(body)):
        (tmp_path / "b.ply").write_bytes(head.encode() + body[:length])
        if layout != "ascii" or length < len(body) - 20:  # a number may well lose its last digits
            with pytest.raises(InputError, match="truncated"):
                read_ply(tmp_path / "b.ply")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_comments_may_be_in_any_language(tmp_path, encoding):
    comment = "comment Größe Å à \x85 \x1c é\nobj_info Ü\n"
    text = header().replace("element", comment + "element", 1) + ROW
    (tmp_path / "a.ply").write_bytes(text.encode(encoding))
    assert len(read_ply(tmp_path / "a.ply").means) == 1


# ---- broken files ------------------------------------------------------------------------------------

ROW = "0 0 0 0 0 0 0 0 0 0 1 0 0 0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a ply file"),
        ("solid cube", "not a ply file"),
        ("ply\nformat ascii 1.0\n", "no end_header"),
        ("ply\nelement vertex 1\nend_header\n", "corrupt ply header: no format line"),
        ("ply\nformat ascii 1.0\nend_header\n", "corrupt ply header: no element vertex line"),
        (header().replace("ascii 1.0", "ascii 2.0") + ROW, "corrupt ply header: 'format ascii 2.0'"),
        (header().replace("vertex 1", "vertex -1") + ROW, "corrupt ply header: 'element vertex -1'"),
        (header().replace("vertex 1", "vertex many") + ROW, "corrupt ply header: 'element vertex many'"),
        (header().replace("float x", "quaternion x") + ROW, "corrupt ply header: 'property quaternion x'"),
        (header().replace("float x", "list uchar int x") + ROW, "no property x: not a 3D Gaussian splat"),
        (header().replace("float x", "list float int x") + ROW, "corrupt ply header: 'property list float"),
        (header().replace("vertex 1", f"vertex {'9' * 5000}") + ROW, "corrupt ply header: 'element vertex 9"),
        (
            header().replace("end_header", "element vertex 1\nend_header"),
            "element vertex twice",
        ),
        (header().replace("element vertex", "property float w\nelement vertex"), "corrupt ply header"),
        (header((*BASE, "x")), "corrupt ply header: property x twice"),
        (
            header().replace("element vertex", "element face 3\nproperty int a\nelement vertex") + "1 2",
            "truncated: 3 rows of element face need 3 numbers, got 2",
        ),
        (
            header().replace("element vertex", "element f 1\nproperty list int int a\nelement vertex") + "-1",
            "corrupt f: a list of -1",
        ),
        (header(("x", "y", "z")) + "0 0 0\n", "no property rot_0: not a 3D Gaussian splat"),
        (header([name for name in BASE if name != "opacity"]) + ROW, "no property opacity"),
        (header([name for name in BASE if name != "f_dc_2"]) + ROW, "no property f_dc_2"),
        (
            header((*BASE, "f_rest_0", "f_rest_1")) + ROW,
            r"expected 0, 9, 24 or 45 properties f_rest_\*, got 2",
        ),
        (header((*BASE, *(f"f_rest_{i}" for i in range(1, 10)))) + ROW, "no property f_rest_0"),
        (header(count=3) + ROW, "truncated: 3 vertices need 42 numbers, got 14"),
        (header(count=10**15) + ROW, "truncated"),
        (header(layout="binary_little_endian", count=10**15) + ROW, "truncated: 10+ vertices need"),
        (header(layout="binary_little_endian") + "short", "truncated: 1 vertices need 56 bytes, got 5"),
        (header() + ROW.replace("1", "one"), "corrupt vertex"),
        (
            header() + ROW.replace("0 0 0 0 0", "0 nan 0 0 0", 1),
            "vertex 0: y is nan, expected a finite number",
        ),
        (header(count=2) + ROW + "inf" + ROW[1:], "vertex 1: x is inf"),
        (header() + "1e39" + ROW[1:], "vertex 0: x is inf"),
        (header() + "0 0 0 0 0 0 0 inf 0 0 1 0 0 0", "vertex 0: scale_0 is inf"),
        (header() + "0 0 0 inf 0 0 0 0 0 0 1 0 0 0", "vertex 0: f_dc_0 is inf"),
        (header() + "0 0 0 0 0 0 0 0 0 0 inf 0 0 0", "vertex 0: rot_0 is inf"),
        (header() + "0 0 0 0 0 0 nan 0 0 0 1 0 0 0", "vertex 0: opacity is nan"),
    ],
)
def test_a_broken_file_is_one_line_that_names_file_and_problem(tmp_path, text, message):
    path = ascii_file(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_ply(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_good_file_beside_the_broken_ones_is_read(tmp_path):
    assert read_ply(ascii_file(tmp_path, header() + ROW)).sh.shape == (1, 1, 3)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    for path, reason in ((tmp_path / "none.ply", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"^cannot read {path}: {reason}"):
            read_ply(path)


def test_any_cut_of_a_good_file_is_refused(tmp_path):
    write_ply(tmp_path / "a.ply", *gaussians(3))
    data = (tmp_path / "a.ply").read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "b.ply").write_bytes(data[:length])
        with pytest.raises(InputError):
            read_ply(tmp_path / "b.ply")


def test_a_damaged_header_is_refused_or_read_and_never_crashes(tmp_path):
    write_ply(tmp_path / "a.ply", *gaussians(3))
    data = (tmp_path / "a.ply").read_bytes()
    end, rng, refusals = data.index(b"end_header"), np.random.default_rng(0), 0
    for _ in range(300):
        broken = bytearray(data)
        for position in rng.integers(0, end, 3):
            broken[position] = rng.integers(0, 256)
        (tmp_path / "b.ply").write_bytes(broken)
        try:
            read_ply(tmp_path / "b.ply")
        except InputError:
            refusals += 1
    assert refusals > 250


def test_infinite_opacities_are_written_as_opaque_and_as_transparent(tmp_path):
    opacities = torch.tensor([math.inf, -math.inf, 1.0])
    write_ply(tmp_path / "a.ply", *gaussians(3)._replace(logit_opacities=opacities))
    assert read_ply(tmp_path / "a.ply").logit_opacities.tolist() == [OPAQUE, -OPAQUE, 1.0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("means", torch.full((7, 3), math.nan), "means: expected finite values"),
        ("logit_opacities", torch.full((7,), math.nan), "logit_opacities: expected finite values"),
        ("quats", torch.zeros(7, 3), r"quats: expected shape \(7, 4\), got \(7, 3\)"),
        ("sh", torch.zeros(7, 3), "sh: expected shape"),
        ("sh", torch.zeros(7, 2, 3), "sh: expected shape .* K 1, 4, 9 or 16"),
    ],
)
def test_nothing_is_written_of_a_scene_that_no_viewer_could_read(tmp_path, field, value, message):
    with pytest.raises(ValueError, match=message):
        write_ply(tmp_path / "a.ply", *gaussians()._replace(**{field: value}))
    assert not (tmp_path / "a.ply").exists()
