"""The faults that have to be survived, with the tests that cause them, and the page docs/faults.md made from it.

`python -m tests.faults.rows` writes docs/faults.md anew from this table and the figures in docs/data/faults.json.
T is the control period, 0.1 s.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
FIGURES = ROOT / "docs" / "data" / "faults.json"

WIRE, STORAGE, UNTRUSTED, ROBOT = (f"faults/test_{name}.py" for name in ("wire", "storage", "untrusted", "robot"))
REWARD, BRIDGE, CAMERA, RECORDER = (
    f"nodes/test_{name}.py" for name in ("reward_node", "arm_bridge", "camera", "recorder")
)
RIG, EVALUATOR, SIM_ROBOT, CALIBRATE = (
    f"nodes/test_{name}.py" for name in ("rig", "evaluator", "sim_robot", "calibrate")
)
GATE, BAGS, EPISODES, CONFIG, TRAINING = (
    f"core/test_{name}.py" for name in ("gate", "bags", "episodes", "config", "training")
)
CHECKPOINT, MODEL, RECORDING, REPLAY = (
    f"core/test_{name}.py" for name in ("checkpoint", "reward_model", "recording", "replay")
)


@dataclass(frozen=True)
class Timing:
    """A reaction that is measured by the campaign `reactions`."""

    effect: str
    bound_s: float


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        tests: pytest node ids below tests/, without parameters.
        timings: with their bounds, none where the fault has no reaction time.
        differs: what is not as specified, and why; empty when nothing is.
    """

    number: int
    fault: str
    expected: str
    tests: tuple[str, ...]
    timings: tuple[Timing, ...] = ()
    differs: str = ""


def _row(number: int, fault: str, expected: str, *tests: str, **more: Any) -> Row:
    return Row(number, fault, expected, tests, **more)


ROWS = (
    _row(1, "camera stops", "the agent stops acting; HOLD ≤ 2T, STOP ≤ 0.5 s",
         f"{WIRE}::test_an_observation_that_stops_ends_the_agents_actions_then_holds_then_stops",
         f"{BRIDGE}::test_heartbeats_hold_and_stop",
         timings=(Timing("HOLD", 0.2), Timing("STOP", 0.5))),
    _row(2, "frame rate halves", "WARN; rewards invalid once the model's frame spacing is not met",
         f"{REWARD}::test_a_slower_camera_is_told_and_too_slow_a_one_is_not_rewarded"),
    _row(3, "same picture, new stamps",
         "rewards invalid from the 5th on (`repeat_limit`), STOP with the 5th (`stop_limit`), by reward and agent",
         f"{REWARD}::test_a_stuck_camera_is_not_rewarded", f"{WIRE}::test_what_the_reward_sees_stops_the_arm",
         f"{WIRE}::test_a_stuck_camera_stops_the_arm_without_a_reward_too",
         differs="Off for simulated cameras, which have no noise."),
    _row(4, "late or double stamps", "dropped and counted; the history stays as it was",
         f"{REWARD}::test_late_double_and_future_frames_are_dropped_and_counted"),
    _row(5, "stamp zero", "refused", f"{REWARD}::test_a_camera_set_up_wrongly_is_refused"),
    _row(6, "stamp over 50 ms in the future", "dropped, WARN",
         f"{REWARD}::test_late_double_and_future_frames_are_dropped_and_counted"),
    _row(7, "clock jumps", "the history begins anew; HOLD; ages use a monotonic clock",
         f"{REWARD}::test_a_jump_of_the_clock_begins_a_new_history",
         f"{WIRE}::test_commands_from_the_future_hold_then_stop", "core/test_limits.py::test_a_clock_that_jumps"),
    _row(8, "encodings", "the colour encodings are converted exactly, `16UC1` and others refused by name",
         f"{REWARD}::test_encodings_and_padded_rows", f"{REWARD}::test_a_camera_set_up_wrongly_is_refused"),
    _row(9, "other resolution or aspect", "refused; another aspect works with a declared crop",
         f"{REWARD}::test_a_camera_set_up_wrongly_is_refused", f"{REWARD}::test_another_aspect_needs_a_declared_crop"),
    _row(10, "wrong length, padded rows", "the message is dropped and counted; padding is skipped",
         f"{REWARD}::test_damaged_messages_are_dropped_and_counted", f"{REWARD}::test_encodings_and_padded_rows"),
    _row(11, "truncated JPEG", "dropped and counted", f"{REWARD}::test_a_truncated_jpeg_is_dropped_and_counted"),
    _row(12, "black or over-exposed", "WARN, rewards invalid",
         f"{REWARD}::test_black_and_over_exposed_pictures_are_not_rewarded"),
    _row(13, "camera was moved", "refused at the start with the shift in pixels; later rewards invalid within 1.5 s",
         f"{RIG}::test_a_camera_that_moved_is_refused_at_start_and_makes_rewards_invalid_later",
         f"{RIG}::test_one_covered_picture_is_no_verdict_and_two_checks_lie_apart",
         "calibration/test_moved.py::test_the_shift_is_measured"),
    _row(14, "another camera", "refused by serial number", f"{CAMERA}::test_another_realsense_is_refused"),
    _row(15, "QoS that does not fit", "ERROR with both policies ≤ 2 s",
         f"{REWARD}::test_a_qos_mismatch_names_both_policies", timings=(Timing("ERROR", 2.0),)),
    _row(16, "two publishers of images", "refused until one is left",
         f"{REWARD}::test_two_publishers_are_refused_until_one_is_left",
         "nodes/test_agent.py::test_two_cameras_on_the_topic_are_refused"),
    _row(17, "camera unplugged and back", "opened again, reconnects counted; the gap begins a new history",
         f"{CAMERA}::test_a_webcam_that_was_unplugged_is_opened_again",
         f"{CAMERA}::test_a_realsense_that_was_unplugged_is_opened_again_with_its_own_clock"),
    _row(18, "weights missing", "refused, never random weights",
         f"{REWARD}::test_models_that_cannot_be_trusted_are_refused",
         f"{CHECKPOINT}::test_a_missing_checkpoint_is_an_error"),
    _row(19, "weights truncated or changed", "refused with the path",
         f"{CHECKPOINT}::test_damage_to_any_file_is_found",
         f"{REWARD}::test_models_that_cannot_be_trusted_are_refused"),
    _row(20, "a pickle as a checkpoint", "never opened",
         f"{CHECKPOINT}::test_a_pickle_given_as_a_checkpoint_is_not_opened",
         f"{CHECKPOINT}::test_a_pickle_inside_a_checkpoint_is_refused_and_not_executed"),
    _row(21, "missing or unexpected weights", "an error that names them",
         f"{CHECKPOINT}::test_weights_must_fit_exactly"),
    _row(22, "codec, video model and statistics of different models", "refused",
         f"{MODEL}::test_parts_that_do_not_belong_together_are_refused_in_one_line"),
    _row(23, "reward is not a number", "invalid, `value` is NaN, counted; STOP with the 5th in a row (`stop_limit`)",
         f"{REWARD}::test_not_a_number_is_never_a_valid_reward", f"{WIRE}::test_what_the_reward_sees_stops_the_arm"),
    _row(24, "reward late", "counted; control goes on; the recording gives the rewards afterwards",
         f"{WIRE}::test_a_reward_node_that_hangs_does_not_disturb_control"),
    _row(25, "out of memory", "a smaller batch once, then invalid rewards; control goes on",
         f"{REWARD}::test_out_of_memory_makes_rewards_invalid_until_there_is_enough",
         "core/test_exploration.py::test_a_batch_that_does_not_fit_is_made_smaller_once"),
    _row(26, "pictures unlike the training", "flagged; above `ood_limit` the reward is invalid",
         f"{REWARD}::test_pictures_unlike_the_training_are_flagged"),
    _row(27, "NaN, Inf or wrong length of an action", "dropped whole, HOLD; STOP after `stop_after_s` or the 4th",
         f"{BRIDGE}::test_commands_that_are_no_numbers_hold_then_stop",
         f"{GATE}::test_an_unusable_command_is_dropped_whole_and_repeated_ones_stop",
         timings=(Timing("HOLD", 0.2), Timing("STOP", 0.5))),
    _row(28, "target outside the workspace", "clamped and counted; STOP at the 11th (`max_clamps`); 0.0 is a bound",
         f"{ROBOT}::test_at_the_edge_of_the_workspace_commands_are_clamped_and_then_stop",
         f"{GATE}::test_the_tool_stops_at_the_box_and_repeated_clamping_stops_the_arm",
         "core/test_limits.py::test_zero_is_a_bound",
         timings=(Timing("STOP", 1.2),)),
    _row(29, "step or jump of velocity", "limited in speed, acceleration and jerk",
         f"{GATE}::test_acceleration_and_jerk_are_limited",
         f"{GATE}::test_joint_positions_keep_to_speed_and_acceleration"),
    _row(30, "near a joint limit", "slow, then STOP before the margin",
         f"{GATE}::test_near_a_joint_limit_the_tool_slows_down_and_inside_the_margin_it_stops",
         f"{GATE}::test_joint_velocities_end_at_the_margin"),
    _row(31, "joint_states stale", "STOP (`state_max_age_s`)", f"{BRIDGE}::test_a_silent_robot_stops",
         timings=(Timing("STOP", 0.5),)),
    _row(32, "joint names reordered or unknown", "matched by name; unknown ones are refused",
         f"{BRIDGE}::test_joint_commands", f"{BRIDGE}::test_unknown_joints_are_refused"),
    _row(33, "second publisher of commands", "STOP ≤ 0.5 s",
         f"{BRIDGE}::test_a_second_publisher_on_the_command_topic_stops", timings=(Timing("STOP", 0.5),)),
    _row(34, "emergency or protective stop", "commands end at once; latched; nothing resumes on release",
         f"{BRIDGE}::test_emergency_stop_is_latched", f"{BRIDGE}::test_a_protective_stop_is_latched",
         timings=(Timing("emergency stop: commands end", 0.1), Timing("protective stop: commands end", 0.1))),
    _row(35, "dead-man released", "HOLD ≤ 1T, the episode ends",
         f"{BRIDGE}::test_dead_man", "core/test_evaluation.py::test_what_aborts_an_episode",
         timings=(Timing("HOLD", 0.1),)),
    _row(36, "agent killed", "STOP ≤ 2T", f"{BRIDGE}::test_a_killed_agent_stops_the_arm",
         timings=(Timing("STOP", 0.2),)),
    _row(37, "gate killed", "the arm stops by its own timeout (0.2 s); nothing reactivates it",
         f"{ROBOT}::test_a_killed_gate_leaves_an_arm_that_stops_by_itself",
         f"{BRIDGE}::test_a_killed_bridge_sends_nothing_more", timings=(Timing("arm still", 0.5),)),
    _row(38, "limits missing", "refused", f"{BRIDGE}::test_without_limits_it_refuses",
         "core/test_limits.py::test_without_a_file_nothing_is_loaded"),
    _row(39, "gripper silent", "its state is a heartbeat: STOP after its timeout, the episode is aborted",
         f"{ROBOT}::test_a_gripper_that_falls_silent_stops_the_arm",
         "core/test_evaluation.py::test_what_aborts_an_episode",
         differs="Only where the robot's file names the gripper's state as a heartbeat."),
    _row(40, "disk nearly full", "refused; during a run the episode ends cleanly",
         f"{RECORDER}::test_too_little_disk_is_refused",
         f"{RECORDING}::test_a_disk_that_fills_up_to_the_reserve_ends_the_episode_as_partial"),
    _row(41, "disk full", "the episode is partial, never a success",
         f"{RECORDER}::test_a_full_disk_leaves_a_partial_episode_never_a_success",
         f"{STORAGE}::test_a_full_disk_never_makes_a_success_and_the_next_episode_has_room"),
    _row(42, "recorder killed", "earlier episodes whole; `repair` recovers every whole chunk and says what is lost",
         f"{RECORDER}::test_sigkill_leaves_earlier_episodes_whole_and_this_one_repairable",
         f"{STORAGE}::test_killed_at_random_instants_closed_episodes_lose_nothing_and_the_open_one_is_recovered",
         f"{STORAGE}::test_the_power_fails_and_what_was_synced_is_there"),
    _row(43, "SIGTERM", "the metadata are complete", f"{RECORDER}::test_sigterm_completes_the_metadata"),
    _row(44, "truncated bag, no metadata.yaml", "salvaged with a report, or refused with an exit status",
         f"{BAGS}::test_a_file_truncated_anywhere_is_refused_and_repaired",
         f"{BAGS}::test_missing_metadata_yaml_is_reported_but_read",
         f"{BAGS}::test_commands_print_and_give_their_status"),
    _row(45, "unknown message type", "skipped by name; refused where it is needed",
         f"{WIRE}::test_a_type_nobody_knows_is_skipped_by_name",
         f"{RECORDER}::test_topics_that_are_missing_or_unknown_are_named"),
    _row(46, "slow disk", "drops counted per topic; over 2 % are a problem of the episode",
         f"{RECORDING}::test_a_slow_disk_drops_and_counts_but_never_blocks",
         f"{BAGS}::test_more_than_two_percent_of_drops_are_a_problem"),
    _row(47, "existing name of an episode", "never overwritten",
         f"{STORAGE}::test_an_existing_name_is_never_overwritten",
         f"{EPISODES}::test_an_existing_name_is_never_overwritten"),
    _row(48, "path traversal, symbolic links", "refused",
         f"{BAGS}::test_file_names_that_leave_the_bag_are_refused",
         f"{BAGS}::test_links_that_leave_the_bag_are_refused",
         f"{CHECKPOINT}::test_a_manifest_cannot_name_files_elsewhere",
         f"{UNTRUSTED}::test_metadata_of_a_bag_names_plain_files_in_it_only"),
    _row(49, "parameter of wrong type or range", "rejected, the old value stays",
         f"{CAMERA}::test_parameters_of_a_running_node_are_kept",
         f"{REWARD}::test_a_parameter_out_of_range_ends_the_node",
         f"{ROBOT}::test_a_parameter_of_another_type_or_range_is_rejected_and_the_old_value_stays"),
    _row(50, "unknown key in YAML", "an error with the nearest key", f"{CONFIG}::test_a_mistake_is_named",
         "core/test_limits.py::test_a_mistyped_limit_names_the_nearest"),
    _row(51, "`!!python` in YAML", "refused, nothing runs", f"{CONFIG}::test_python_tags_run_nothing"),
    _row(52, "calibration missing, old, changed, of another camera, no rotation, in millimetres", "refused",
         f"{RIG}::test_a_model_without_its_calibration_is_refused",
         f"{RIG}::test_pictures_of_another_size_than_calibrated_are_refused",
         "calibration/test_rig.py::test_a_changed_file_is_refused",
         "calibration/test_rig.py::test_a_rig_of_another_time_camera_or_recording_is_refused"),
    _row(53, "hand-eye poses that do not tell", "refused with the motion that is missing, nothing written",
         f"{CALIBRATE}::test_a_tool_that_never_turns_is_refused_and_nothing_is_written",
         "calibration/test_handeye.py::test_degenerate_motion_is_refused_and_the_missing_motion_named"),
    _row(54, "killed while a checkpoint is written", "the one before it loads",
         f"{TRAINING}::test_dying_anywhere_is_made_up_for",
         f"{TRAINING}::test_what_a_kill_leaves_of_a_checkpoint_is_passed_over_and_cleared"),
    _row(55, "truncated episode of the agent's replay", "left out and told; the others stay",
         f"{REPLAY}::test_what_a_cut_off_file_held_is_left_out_and_told",
         f"{REPLAY}::test_killed_at_random_instants_it_opens_with_all_committed_episodes"),
    _row(56, "training resumed", "the same losses, actions and weights as without the stop",
         "core/test_loop.py::test_a_resumed_run_is_the_uninterrupted_one",
         f"{TRAINING}::test_dying_anywhere_is_made_up_for"),
    _row(57, "a process of a distributed training dies or freezes", "the others end within 60 s and say why",
         "core/test_distributed.py::test_a_process_that_freezes_ends_the_others_even_when_they_exchange_nothing",
         "core/test_distributed.py::test_killed_and_stopped_in_two_processes_it_ends_in_one_with_the_same_numbers"),
    _row(58, "no EGL, no OSMesa", "an error with the packages to install; the other one is taken where it works",
         "sim/test_rendering.py::test_no_backend_names_the_debian_packages",
         "sim/test_rendering.py::test_the_second_backend_is_taken_where_the_first_fails",
         "core/test_doctor.py::test_without_any_back_end_the_packages_are_named"),
    _row(59, "two runs, one directory", "the second is refused", f"{TRAINING}::test_one_run_at_a_time",
         f"{REPLAY}::test_a_second_process_is_refused"),
    _row(60, "network partition", "STOP ≤ 0.5 s; only a reset rejoins",
         f"{ROBOT}::test_an_agent_that_is_cut_off_stops_the_arm_and_rejoins_by_a_reset_only",
         timings=(Timing("STOP", 0.5),)),
)  # fmt: skip
AREAS = {
    1: "Camera and time",
    18: "Model and reward",
    27: "Action and robot",
    40: "Recording and storage",
    49: "Configuration and runs",
}

HEAD = """# Faults and reactions

What happens when a camera, a model, the robot, the disk or a process fails, and the tests that cause it. Made by
`make faults` from `tests/faults/rows.py` and `docs/data/faults.json`. Tests run real processes over DDS unless they are
in `core/` or `calibration/`. HOLD keeps the last safe set-point and ends by itself; STOP is latched until a person
resets the gate. T = 0.1 s, control at 10 Hz.

Measured: p50 / max (n) in seconds from the injection to the effect as another process receives it, with the limits of
`config/robots/sim_panda.yaml`; injections whose effect had another cause are repeated. **Bold** is over its bound.
"""
UNTRUSTED = {
    "inputs": "inputs", "read": "read", "refused": "refused", "fault": "faults", "hangs": "hangs", "deaths": "deaths",
    "peak_mib": "peak MiB", "grown_mib": "grown by MiB", "seconds": "seconds", "per_second": "inputs/s",
}  # fmt: skip
"""What the campaign `untrusted` tells of each kind, as the columns of its table."""
NOTES = """
- 1: the camera's process is frozen; a trained agent acts on its pictures, and `camera_info` is a heartbeat of the gate
  (timeout 0.12 s, hold). Without it the agent's last command comes up to T after the last picture, and HOLD
  `hold_after_s` later.
- 36: the last command comes up to T before the kill or just at it, so STOP follows between `stop_after_s` − T and
  `stop_after_s` plus one period of the gate.
- 37: sim_robot in a process of its own, still below 0.01 rad/s of every joint; on a busy machine its simulation lags.
- 60: the agent's process is frozen (SIGSTOP), so that nothing passes between it and the gate, then goes on; on one
  machine no network is cut.
"""


def cell(timing: Timing, values: dict[str, Any] | None) -> str:
    """What was measured of one reaction."""
    if not values or values["max_s"] is None:
        return f"{timing.effect}: not measured"
    figures = f"{values['p50_s']:.3f} / {values['max_s']:.3f} ({values['n']})"
    return f"{timing.effect}: " + (f"**{figures}**" if values["max_s"] > timing.bound_s else figures)


def page(figures: dict[str, Any]) -> str:
    """docs/faults.md, with what was measured."""
    reactions = figures.get("reactions", {})
    lines = [HEAD]
    if reactions:
        loads = [values["load"] for values in reactions.values()]
        lines.append(f"{figures['machine']}; load average {min(loads):g} to {max(loads):g} while it was measured.\n")
    for row in ROWS:
        if row.number in AREAS:
            lines += [
                f"\n## {AREAS[row.number]}\n",
                "| | fault | what happens | measured | test |",
                "|---|---|---|---|---|",
            ]
        cells = [cell(one, reactions.get(f"{row.number} {one.effect}")) for one in row.timings]
        bounded = [f"{text}, bound {one.bound_s:g}" for text, one in zip(cells, row.timings, strict=True)]
        expected = f"{row.expected}. {row.differs}".removesuffix(". ")
        tests = "<br>".join(f"`{one}`" for one in row.tests)
        lines.append(f"| {row.number} | {row.fault} | {expected} | {'<br>'.join(bounded)} | {tests} |")
    lines += ["\n## How it was injected", NOTES.rstrip()]
    soak = _soak(figures["soak"]) if "soak" in figures else []
    return "\n".join([*lines, *_campaigns(figures.get("campaigns", {})), *soak]) + "\n"


def _campaigns(campaigns: dict[str, Any]) -> list[str]:
    """The other long campaigns, a line for each figure; of untrusted input, one for each kind."""
    lines = []
    for name, values in campaigns.items():
        if name == "untrusted":
            lines += _untrusted(values)
            continue
        lines += [f"\n## Campaign `{name}`\n", "| figure | value |", "|---|---|"]
        for key, value in values.items():
            shown = len(value) if key == "problems" else value
            if isinstance(shown, dict):
                facts = {k: len(v) if isinstance(v, dict | list) else v for k, v in shown.items()}
                shown = ", ".join(f"{k} {v}" for k, v in facts.items())
            lines.append(f"| {key.replace('_', ' ')} | {shown} |")
    return lines


def _untrusted(kinds: dict[str, Any]) -> list[str]:
    heads, total = ["kind", *UNTRUSTED.values()], sum(one["inputs"] for one in kinds.values())
    faults = [f"- {kind}: {fault}" for kind, one in kinds.items() for fault in one["faults"]]
    return [
        "\n## Campaign `untrusted`\n",
        "Damaged, hostile and generated inputs, read in processes that may take 1 GiB beyond what they begin with and",
        "5 s for each input. An input is read or refused with an error that its caller expects; anything else, a file",
        "written elsewhere or a program started too, is a fault. *Grown*: what a reader took more than for a whole",
        "sample.",
        f"{total} inputs, {sum(one['fault'] for one in kinds.values())} faults.\n",
        f"| {' | '.join(heads)} |",
        f"|---|{'---:|' * len(UNTRUSTED)}",
        *(f"| {kind} | {' | '.join(str(one[key]) for key in UNTRUSTED)} |" for kind, one in kinds.items()),
        *(["", *faults] if faults else []),
    ]


def _soak(soak: dict[str, Any]) -> list[str]:
    """The long run of the whole graph: its faults, and the memory of each process."""
    lines = [
        "\n## Soak\n",
        f"`make soak`: the whole graph with random faults for {soak['minutes']:g} minutes on 2 cores, load average at",
        f"its end {soak['load']:g}. {soak['stops']} stops of the gate, {soak['missed_stops']} missed;",
        f"{len(soak['deadlocks'])} nodes fell silent, {len(soak['died'])} ended by themselves;",
        f"{soak['rewards']} rewards, {soak['commands']} commands, {soak['commands_not_finite']} of them no numbers.\n",
        "| fault | injected | stops | p50 / max s | arm was at rest | missed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in soak["faults"].items():
        times = f"{one['p50_s']:.3f} / {one['max_s']:.3f}" if "p50_s" in one else ""
        rest, missed = one["not_driving"] + one["moot"], len(one["missed"])
        lines.append(f"| {name} | {one['injected']} | {one.get('stops', '')} | {times} | {rest} | {missed} |")
    lines += [
        "\n![memory of each process](img/soak.png)\n",
        "Growth of the process of each node that lived longest, after the first third of its time: a line through",
        "means over 10 s, with the 95 % interval of its slope.\n",
        "| node | processes | seconds | first, last MB | MB/h |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, one in soak["memory"].items():
        grows = "{} [{}, {}]".format(one["mb_per_h"], *one["interval_95"]) if "mb_per_h" in one else ""
        sizes = f"{one.get('first_mb', '')}, {one.get('last_mb', '')}"
        lines.append(f"| {name} | {one['processes']} | {one.get('seconds', '')} | {sizes} | {grows} |")
    return lines


def read_figures() -> dict[str, Any]:
    """What was measured last; empty before the first time."""
    return dict(json.loads(FIGURES.read_text())) if FIGURES.exists() else {}


def write(figures: dict[str, Any]) -> None:
    """The figures and the page."""
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    PAGE.write_text(page(figures))


def main() -> int:
    PAGE.write_text(page(read_figures()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
