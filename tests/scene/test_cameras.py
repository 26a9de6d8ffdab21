"""Where cameras stand, what they see and what their views are called."""

import math

import pytest
import torch

from ddpo3d_fast.scene.cameras import look_at_origin, orbit, sample_cameras

ANGLES = [(0, 0), (90, 0), (180, 0), (-90, 20), (37, -10), (200, 75), (10, 90), (10, -90)]


def cameras_at(*degrees, **options):
    azimuth, elevation = torch.tensor(degrees, dtype=torch.float64).deg2rad().T
    return look_at_origin(azimuth, elevation, **options)


def project(cameras, point, width=64, height=64):
    """Pixel and depth of a world point, straight from the definition of viewmats and intrinsics."""
    homogeneous = torch.tensor([*point, 1.0])
    camera = (cameras.viewmats @ homogeneous)[:, :3]
    pixel = (cameras.intrinsics(width, height) @ camera[:, :, None])[:, :, 0]
    return pixel[:, :2] / pixel[:, 2:], camera[:, 2]


def test_the_front_camera_sees_right_right_up_up_and_near_near():
    front = cameras_at((0, 0))
    centre, depth = project(front, (0, 0, 0))
    assert centre[0].tolist() == pytest.approx([32, 32], abs=1e-4)
    assert depth.item() == pytest.approx(3.0)
    assert project(front, (0.5, 0, 0))[0][0, 0] > 33  # +x is on the right
    assert project(front, (0, 0.5, 0))[0][0, 1] < 31  # +y is up, pixels count down
    assert project(front, (0, 0, 1))[1].item() == pytest.approx(2.0)  # the front, +z, is near


@pytest.mark.parametrize("angles", ANGLES)
def test_a_camera_stands_where_its_angles_say_and_is_a_rotation(angles):
    camera = cameras_at(angles, radius=2.5)
    rotation, translation = camera.viewmats[0, :3, :3].double(), camera.viewmats[0, :3, 3].double()
    az, el = map(math.radians, angles)
    expected = [2.5 * math.sin(az) * math.cos(el), 2.5 * math.sin(el), 2.5 * math.cos(az) * math.cos(el)]
    assert (-rotation.T @ translation).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    assert camera.viewmats[0, 3].tolist() == [0, 0, 0, 1]
    assert rotation[0, 1].item() == pytest.approx(0.0, abs=1e-7)  # no roll: the camera's x stays level


def test_the_object_s_ball_fits_the_frame():
    front = cameras_at((0, 0))
    top = project(front, (0, 1.0, 0))[0][0, 1].item()
    tangent = 3.0 * math.sin(front.fov_y / 2)
    assert 0 < top < 5
    assert tangent == pytest.approx(1.026, abs=1e-3)


def test_intrinsics_scale_with_the_image_and_keep_pixels_square():
    matrix = cameras_at((0, 0), (9, 9)).intrinsics(128, 64)
    focal = 32 / math.tan(math.radians(20))
    expected = torch.tensor([[focal, 0, 64], [0, focal, 32], [0, 0, 1]])
    assert torch.allclose(matrix, expected.expand(2, 3, 3))


def test_an_orbit_goes_once_around_at_one_height():
    cameras = orbit(8, elevation=0.3)
    assert cameras.elevation.tolist() == pytest.approx([0.3] * 8)
    turns = torch.diff(cameras.azimuth.double()).remainder(2 * math.pi)
    assert torch.allclose(turns, torch.full((7,), math.pi / 4, dtype=torch.float64), atol=1e-6)
    assert orbit(4).azimuth.rad2deg().tolist() == pytest.approx([0, 90, 180, -90], abs=1e-4)


def test_sampled_views_stand_evenly_around_and_mostly_level():
    generator = torch.Generator().manual_seed(0)
    batches = [sample_cameras(generator, 4) for _ in range(500)]
    azimuth = torch.stack([batch.azimuth for batch in batches]).double()
    elevation = torch.cat([batch.elevation for batch in batches]).rad2deg()
    gaps = (azimuth.roll(-1, 1) - azimuth).remainder(2 * math.pi)
    assert gaps.mean().item() == pytest.approx(math.pi / 2, abs=0.02)
    assert gaps.std() < 0.4
    overhead = (elevation > 58).double().mean().item()
    assert 0.03 < overhead < 0.09
    assert elevation.min() >= -10.01
    assert not ((elevation > 45.01) & (elevation < 59.99)).any()
    assert elevation.max() <= 80.01
    assert azimuth.cos().mean().abs() < 0.06  # no side is preferred
    assert azimuth.sin().mean().abs() < 0.06


def test_the_same_generator_state_gives_the_same_cameras():
    first, second = (sample_cameras(torch.Generator().manual_seed(5), 6) for _ in range(2))
    assert torch.equal(first.viewmats, second.viewmats)


def test_cameras_can_be_chosen_by_index():
    cameras = orbit(6)
    chosen = cameras[[0, 3]]
    assert len(chosen) == 2
    assert chosen.azimuth.rad2deg().tolist() == pytest.approx([0, 180], abs=1e-4)
    assert torch.equal(chosen.viewmats[1], cameras.viewmats[3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orbit(0), "count: expected 1 or more, got 0"),
        (lambda: sample_cameras(torch.Generator(), 0), "count: expected 1 or more, got 0"),
        (lambda: sample_cameras(torch.Generator(), 1, overhead_fraction=2.0), "overhead_fraction: .*got 2.0"),
        (lambda: cameras_at((0, 0), radius=0.0), "radius: expected a positive distance, got 0.0"),
        (lambda: cameras_at((0, 0), fov_y=4.0), "fov_y: expected radians between 0 and pi, got 4.0"),
        (lambda: look_at_origin(torch.zeros(2), torch.zeros(3)), "azimuth, elevation: expected"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
