"""Calibration of cameras and of where they stand: boards, intrinsics, hand-eye, time offset, and whether all still holds."""
