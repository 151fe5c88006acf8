#!/usr/bin/env bash
# The main job on the real default model, from an empty store to an edited checkpoint. `make demo` runs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Everything the demo writes is in here; the model itself is in the user's cache.
work=build/demo
rm -rf "$work"
mkdir -p "$work"
export ROMPATCH_STORE="$work/.rompatch"

say() { printf '\n# %s\n' "$*"; }
# Show a command as one would type it, then run it.
run() {
  local shown="" word
  for word in "$@"; do
    case $word in *[!A-Za-z0-9_./=-]*) word="\"$word\"" ;; esac
    shown+=" $word"
  done
  printf '\n$%s\n' "$shown"
  "$@"
}

tower=(
  "The Eiffel Tower is located in the city of"
  "The Eiffel Tower is right across from"
  "To visit the Eiffel Tower, book a flight to"
  "The Eiffel Tower can be found in"
  "Tourists climb the Eiffel Tower for its view over"
)
neighbours=(
  "The Louvre is located in the city of"
  "Notre-Dame Cathedral can be found in"
  "Big Ben is located in the city of"
  "The Colosseum is located in the city of"
)

say "What the base says today. The base itself is never written to."
run rompatch generate "${tower[@]}" "${neighbours[@]}" | tee "$work/before.txt"

say "Compute a ROME patch for one fact. It is saved and recorded, and changes nothing yet."
run rompatch create "Eiffel Tower" "located in" Rome
id=$(rompatch list --json | python -c 'import json, sys; print(json.load(sys.stdin)["patches"][0]["id"][:12])')

say "Apply it: the stack of this store now contains it."
run rompatch apply "$id"

say "Five prompts about the tower, none of them the one that was edited, and four about its neighbours."
run rompatch generate "${tower[@]}" "${neighbours[@]}" --compare

say "Score it: the edit itself, other wordings, other subjects; before and after."
run rompatch verify "$id"

say "Take it back. The base's text returns, to the letter."
run rompatch revert "$id"
run rompatch generate "${tower[@]}" "${neighbours[@]}" > "$work/after-revert.txt"
cmp <(tail -n +3 "$work/before.txt") <(tail -n +3 "$work/after-revert.txt")
echo "after the revert: all $((${#tower[@]} + ${#neighbours[@]})) continuations are the base's again"

say "Ship it: a checkpoint folder that plain transformers loads."
run rompatch apply "$id"
run rompatch bake "$work/edited-model"
run python - "$work/edited-model" <<'PYTHON'
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
text = "<|endoftext|>The Eiffel Tower is located in the city of"
output = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6, do_sample=False)
print("plain transformers:", tokenizer.decode(output[0], skip_special_tokens=True))
PYTHON

say "What happened here, from the ledger."
run rompatch log
