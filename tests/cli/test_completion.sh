# The completion against a program that offers known lists.
#
#     test_completion.sh COMPLETION
kvsim() {
  case "$*" in
  'list commands --names') printf '%s\n' run report compare list show ;;
  'list kinds --names') printf '%s\n' techniques models ;;
  'list techniques --names') printf '%s\n' kivi snapkv gqa ;;
  'list models --names') printf '%s\n' llama-3-8b llama-2-13b qwen2.5-32b ;;
  'run --help') printf '  -o, --output=DIR   where\n  --model=M  which\n  --use=T  how\n' ;;
  '--help') printf '  --version\n' ;;
  *) return 2 ;;
  esac
}
source "$1"

count=0
# LINE typed so far, then the candidates expected.
check() {
  COMP_LINE=$1 COMP_POINT=${#1}
  shift
  _kvsim
  count=$((count + 1))
  if [ "${COMPREPLY[*]}" = "$*" ]; then
    echo "ok $count - $COMP_LINE"
  else
    echo "not ok $count - $COMP_LINE: expected '$*', found '${COMPREPLY[*]}'"
  fi
}

check 'kvsim re' report
check 'kvsim ' compare list report run show
check 'kvsim --' --version
check 'kvsim run t.jsonl --m' --model
check 'kvsim run t.jsonl --model lla' llama-2-13b llama-3-8b
check 'kvsim run t.jsonl --model=qw' qwen2.5-32b
check 'kvsim run t.jsonl --use k' kivi
check 'kvsim run t.jsonl --use gqa,sn' gqa,snapkv
check 'kvsim run t.jsonl --use kivi:bits=2,g' 2,gqa
check 'kvsim list t' techniques
check 'kvsim show sna' snapkv
check 'kvsim run ./tra'
echo "1..$count"
