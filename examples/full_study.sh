#!/usr/bin/env bash
# The whole quality study of docs/reward.md: all tasks of the paper, every arm, several seeds; hours on a small machine.
# It can be interrupted and started again. Options go to the study: --seeds 0 --arms default published
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data=${DATA:-data/full}
out=${OUT:-runs/study}
seen=(assembly coffee-push dial-turn door-close lever-pull peg-unplug-side reach)
unseen=(coffee-button faucet-open drawer-open window-open button-press door-lock handle-press reach-wall)

dr record-expert --task "${seen[@]}" --episodes 20 --out "$data/expert"
dr record-expert --task "${seen[@]}" --quality 50 100 --episodes 12 --seed 1000 --out "$data/background"
dr record-expert --task "${seen[@]}" "${unseen[@]}" --quality 0 25 50 100 --episodes 12 --seed 2000 --out "$data/test"
dr study discrimination --full --episodes "$data" --out "$out" "$@"
