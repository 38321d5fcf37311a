"""What nodes on a robot do, without ROS: gates of camera frames, live rewards, recordings."""
