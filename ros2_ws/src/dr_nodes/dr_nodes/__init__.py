"""ROS 2 nodes over dr_core."""
