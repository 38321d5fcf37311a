#!/usr/bin/env bash
# The main job from end to end: record experts, learn a reward from their videos, measure it, write the report.
# Each part finds what an earlier start finished, so an interrupted demo goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data=${DATA:-data/demo}
run=${RUN:-runs/demo}
seen=(door-close dial-turn coffee-push)
unseen=(drawer-open window-open)

# With --pretrained the agent is loaded instead of trained: a few minutes less.
pretrained=""
case "${1:-}" in
    --pretrained) pretrained=1 ;;
    "") ;;
    *) echo "usage: examples/demo.sh [--pretrained]" >&2; exit 2 ;;
esac

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1/10  record experts and, for comparison, half and wholly random behaviour"
dr record-expert --task "${seen[@]}" --episodes 20 --out "$data/expert"
dr record-expert --task "${seen[@]}" --quality 50 100 --episodes 12 --seed 1000 --out "$data/background"

say "2/10  record test episodes of four qualities, of tasks the reward will know and of tasks it will not"
dr record-expert --task "${seen[@]}" "${unseen[@]}" --quality 0 25 50 100 --episodes 12 --seed 2000 --out "$data/test"

say "3/10  learn the reward from the videos"
dr train-reward "$data/expert" --background "$data/background" --out "$run" --resume

say "4/10  does it tell good behaviour from bad?"
if [ ! -e "$run/study" ]; then
    dr study discrimination --model "$run/model" --episodes "$data/test" --out "$run/study" \
        --estimators shaped_ratio ratio one_pass paper --thin 8
fi

say "5/10  pictures"
if [ ! -e "$run/scores" ]; then
    dr score "$data/test/dial-turn/q0/episode_2000" "$data/test/dial-turn/q50/episode_2000" \
        --model "$run/model" --out "$run/scores"
fi

if [ "$pretrained" ]; then
    agent=models/door-close/agent
    say "6/10  the agent: $agent, trained before"
else
    agent=$run/agent/agent
    say "6/10  an agent learns to close the door from that reward"
    dr train-agent --task door-close --model "$run/model" --frames 15000 --set eval_every_frames=5000 eval_episodes=20 \
        --out "$run/agent" --resume
fi

say "7/10  how well does it do? In simulation, and through the ROS graph on the simulated arm in real time"
if [ ! -e "$run/agent_played" ]; then
    dr eval-agent --agent "$agent" --episodes 20 --out "$run/agent_played"
fi
if [ ! -e "$run/agent_live/report.html" ]; then
    dr launch evaluate --sim --sim-task door-close --sim-width 64 --sim-height 64 --sim-camera-rate-hz 40 \
        --policy checkpoint --checkpoint "$agent" --episodes 5 --episode-s 10 \
        --model "$run/model" --task door-close --out "$run/agent_live"
fi

say "8/10  the same for an arm: a simulated Panda that pushes a block to a goal"
dr record-expert --task panda-push --episodes 20 --out "$data/arm/expert"
dr record-expert --task panda-push --quality 50 100 --episodes 12 --seed 1000 --out "$data/arm/background"
dr train-reward "$data/arm/expert" --background "$data/arm/background" --out "$run/arm" --resume

say "9/10  live: the arm, two agents in turn, safety gate, recorder and reward as processes that talk over DDS"
if [ ! -e "$run/live/report.html" ]; then
    dr launch evaluate --sim --policy scripted --policy-b disturbed --episodes 2 --episode-s 15 \
        --model "$run/arm/model" --crop center --task panda-push --out "$run/live"
fi
say "10/10  the report"
dr report "$run"
