#!/usr/bin/env bash
# Every way to use a model, full and through LoRA, a few steps each: bench/real.sh MODEL [--steps 3] [--only sft lora:grpo]
exec "${PYTHON:-python}" "$(dirname "$0")/real.py" "$@"
