"""Completion scripts. They hold no names: candidates always fit the installed version."""

BASH = r"""# bash completion for hpc-dynamo
_hpc_dynamo() {
    local line="${COMP_LINE:0:COMP_POINT}"
    mapfile -t COMPREPLY < <("$1" __complete bash "$COMP_WORDBREAKS" "$line" 2>/dev/null)
}
complete -o nospace -F _hpc_dynamo hpc-dynamo
"""

ZSH = r"""#compdef hpc-dynamo
# zsh completion for hpc-dynamo
_hpc_dynamo() {
    local line name
    local -a ready ready_texts open open_texts
    for line in "${(@f)$("$words[1]" __complete zsh "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        name="${line%%$'\t'*}"
        case "$name" in
            '') ;;
            *[=./]) open+=("$name"); open_texts+=("${line/$'\t'/  -- }") ;;
            *) ready+=("$name"); ready_texts+=("${line/$'\t'/  -- }") ;;
        esac
    done
    compadd -l -d ready_texts -a ready
    compadd -l -S '' -d open_texts -a open
}
if [[ "${funcstack[1]}" == _hpc_dynamo ]]; then
    _hpc_dynamo "$@"
else
    compdef _hpc_dynamo hpc-dynamo
fi
"""

# prose: ignore (a script)
FISH = r"""# fish completion for hpc-dynamo
function __hpc_dynamo_candidates
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    set -l current (commandline -ct)
    $program __complete fish $words "$current" 2>/dev/null
end
complete -c hpc-dynamo -f -a '(__hpc_dynamo_candidates)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
