"""Calibration of cameras: boards, intrinsics, hand-eye, time offset, and whether all of it still holds."""
