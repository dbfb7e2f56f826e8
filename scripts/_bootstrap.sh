# Shared by scripts/quickstart and scripts/test: makes .venv where there is none and installs into it.
#
# Sourced, never run. The caller calls `bootstrap [EXTRA...]` and then uses "$VENV_PYTHON".
#
# A stamp inside .venv says what is installed there: a key (a hash over everything that decides what pip
# would install) and the extras. It is removed before pip starts and written after pip succeeded, so
# that nothing half-done counts as done; while it fits, pip is not called and no network is needed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$ROOT/.venv"
VENV_PYTHON="$VENV/bin/python"
STAMP="$VENV/.nfn-opt-installed"
INSTALL_LOG="$VENV/install.log"

# Prints the version; ends with 3 where Python is too old and with 4 where it cannot make environments.
PROBE='
import sys
print("%d.%d.%d" % sys.version_info[:3])
if sys.version_info < (3, 10):
    sys.exit(3)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(4)
'

say() { printf '%s\n' "[set-up] $*" >&2; }

fail() {
    printf '%s\n' "[set-up] error: $1" >&2
    shift
    if [ "$#" -gt 0 ]; then printf '         %s\n' "$@" >&2; fi
    exit 1
}

# Sets PYTHON_FOUND to the first interpreter that fits. Each is run, not just looked up, because a name
# on the PATH may be a version manager's shim with nothing behind it.
find_python() {
    local candidate version status rejected=()
    local candidates=(python3 python python3.11 python3.12 python3.13 python3.10)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if ! command -v "$candidate" >/dev/null 2>&1; then
            rejected+=("$candidate: not found")
            continue
        fi
        status=0
        version="$("$candidate" -c "$PROBE" 2>/dev/null </dev/null)" || status=$?
        case "$status" in
            0) PYTHON_FOUND="$candidate"; say "found Python $version ($(command -v "$candidate"))"; return ;;
            3) rejected+=("$candidate: Python $version is too old") ;;
            4) rejected+=("$candidate: Python $version has no venv module (on Debian and Ubuntu: apt install python3-venv)") ;;
            *) rejected+=("$candidate: does not run") ;;
        esac
    done
    fail "Python 3.10 or newer is needed, with its venv module. Tried:" "${rejected[@]/#/  }" \
        "Install one, or name it: PYTHON=/path/to/python3 $0"
}

hash_stdin() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256
    else cksum
    fi | tr -cd '[:alnum:]'
}

# What decides the result of an install. The folder is part of it because the install points back to it.
install_key() {
    local version
    version="$("$VENV_PYTHON" -I -S -c 'import sys; print(sys.version)' 2>/dev/null </dev/null)" || return 1
    { printf '%s\n' "$ROOT" "$version"; cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt"; } | hash_stdin
}

# True if the stamp fits the key and holds all the extras asked for.
is_installed() {
    local key stamped extra
    [ -f "$STAMP" ] && key="$(install_key)" || return 1
    stamped="$(cat "$STAMP")"
    [ "${stamped%% *}" = "$key" ] || return 1
    for extra in "$@"; do
        case " ${stamped#* } " in *" $extra "*) ;; *) return 1 ;; esac
    done
}

# An environment can be used if its Python starts, is new enough and has pip.
venv_works() { "$VENV_PYTHON" -c "import sys, pip; sys.exit(sys.version_info < (3, 10))" >/dev/null 2>&1 </dev/null; }

# An unpacking that was cut off can leave half a package that pip would take for a whole one.
unpacking_was_cut() {
    [ -f "$INSTALL_LOG" ] &&
        [ "$(grep -c '^Installing collected' "$INSTALL_LOG")" -gt "$(grep -c '^Successfully installed' "$INSTALL_LOG")" ]
}

make_venv() {
    if venv_works && ! unpacking_was_cut; then return; fi
    if [ -e "$VENV" ] || [ -L "$VENV" ]; then
        if [ ! -d "$VENV" ] || { [ -n "$(ls -A "$VENV")" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ ! -d "$VENV/include" ]; }; then
            fail "$VENV is in the way: it is not a Python environment." "Move it elsewhere and start again."
        fi
        say ".venv is broken, unfinished or older than Python 3.10; making it anew"
    fi
    find_python
    say "making the environment .venv"
    "$PYTHON_FOUND" -m venv --clear "$VENV" </dev/null >&2 && venv_works || fail \
        "$PYTHON_FOUND could not make the environment $VENV; its messages are above." \
        "Check that the disk has room and that the folder can be written to, then start again."
}

# Lets through the lines of pip's output that tell how far it is.
show_progress() {
    local line
    while IFS= read -r line; do
        case "$line" in
            *Downloading*MB\)* | *Downloading*GB\)* | *"Using cached"*MB\)*) say "  ${line#"${line%%[![:space:]]*}"}" ;;
            "Installing collected packages"*) say "  Unpacking all of them; this takes a minute or two" ;;
        esac
    done
}

run_pip() {
    (cd "$ROOT" && "$VENV_PYTHON" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        --constraint constraints.txt "$@") </dev/null 2>&1 | tee -a "$INSTALL_LOG" | show_progress
}

install_packages() {
    local key extras="$*" target="."
    if [ -n "$extras" ]; then target=".[${extras// /,}]"; fi
    rm -f "$STAMP"
    say "installing the packages${extras:+ with the extras $extras}; the first time this takes some minutes"
    : >"$INSTALL_LOG"
    # The build tool is installed first and then used in place, so that its version too is a fixed one and
    # a later reinstall needs no network. Editable installs need pip 21.3.
    if ! { run_pip "pip>=21.3" setuptools && run_pip --no-build-isolation --editable "$target"; }; then
        tail -n 20 "$INSTALL_LOG" >&2
        fail "pip could not install the packages; its last lines are above, all of them in $INSTALL_LOG." \
            "Nothing is counted as installed: put right what it names (often the network) and start again."
    fi
    key="$(install_key)"
    printf '%s\n' "$key $extras" >"$STAMP.new"
    mv -f "$STAMP.new" "$STAMP"
    say "done"
}

# Makes sure that the project with the given extras is installed in .venv.
bootstrap() {
    unset PYTHONHOME  # would point .venv's Python at another installation
    if is_installed "$@"; then return; fi
    # A second run waits here until the first one has finished, and then most likely finds all done.
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$ROOT/.venv.lock"
        flock --nonblock 9 || { say "waiting for another run that is installing"; flock 9; }
    fi
    if ! is_installed "$@"; then
        make_venv
        install_packages "$@"
    fi
    exec 9>&-
}
