# Sourced by the scripts of this folder; the same text in the three folders. It gives a script what all of them have:
#
# - Variables in place of a script's numbers, for a quick look. Each is the flag of that name, for the commands that take it:
#   LIMIT= NUM_FORGET= EPOCHS= STEPS= BATCH_SIZE= NUM_IMAGES= IMAGE_SIZE=
#   SAMPLING_STEPS= (steps of drawing, where STEPS are those of training) NUM_SAMPLES= (images drawn of each class or prompt)
# - Further flags, on the command line or in MEMORY=, go to the commands that take them. One that no command takes is refused before
#   anything runs.
# - Relative paths count from where you stand, in variables and in further flags. The defaults lie in this folder.
# - DRY_RUN=1 prints the commands, complete, and runs none.
#
# How: the script is read twice. The first time `python` only notes its commands, so that further_flags.py can ask their parsers.

unset CDPATH  # with it, cd prints
shopt -u patsub_replacement 2> /dev/null || true  # of bash 5.2: a & in a path would stand for what was matched
started_in=$PWD
script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
cd "$(dirname "$script")/.."
if [[ ${1:-} == --help ]]; then
  for file in "$script" scripts/common.sh; do sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$file"; done
  exit
fi
for name in OUT DATA_DIR DATA MODEL CLASSIFIER CLIP PROMPTS FORGET_DIR; do  # all but the first three may name something else than a path
  value=${!name:-}
  if [[ -n $value && $value != /* ]] && [[ $name =~ ^(OUT|DATA_DIR|DATA)$ || -e $started_in/$value ]]; then
    export "$name=$started_in/$value"
  fi
done

# Without the dots of OUT=. and without a slash at its end, since a script makes names of it.
if [[ -d ${OUT:-} ]]; then OUT=$(cd "$OUT" && pwd); elif [[ -n ${OUT:-} ]]; then OUT=${OUT%/}; fi

step=0
total=0
plan=${NOTE_COMMANDS:-}
python() {  # note the command, or say how far the script is and run it
  local name=${1%.py} word
  step=$((step + 1))
  if [[ -n ${NOTE_COMMANDS:-} ]]; then
    printf '%s\0' "$@" > "$plan/$step"
    return
  fi
  if [[ ! -f $plan/$step ]]; then  # something cleans the folder of temporary files while a script runs for weeks
    echo "error: $plan/$step is gone, and with it the further flags: run the script again" >&2
    exit 1
  fi
  if [[ -f $plan/$step.more ]]; then
    while IFS= read -r -d '' word; do set -- "$@" "$word"; done < "$plan/$step.more"
  fi
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' python "$@" && echo
    return
  fi
  if [[ ${2:-} == --method ]]; then name=$3; elif [[ " $* " == *" --retain_only "* ]]; then name=retrain; fi
  echo "== $step of $total: $name"
  command python "$@"
}

if [[ -z $plan ]]; then
  plan=$(mktemp -d)
  trap 'rm -rf "$plan"' EXIT
  NOTE_COMMANDS=$plan bash "$script" > /dev/null
  total=$(ls "$plan" | wc -l | tr -d ' ')
  command python scripts/further_flags.py "$plan" "$started_in" ${MEMORY:-} "$@"
fi
