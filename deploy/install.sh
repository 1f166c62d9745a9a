#!/bin/sh
# Installs podctl and the unit that runs a pod. It downloads nothing, starts nothing, and makes no ring: it says how at the end.
#
#   install.sh                    installs the podctl that lies beside it, or the one that was built in this repository
#   install.sh --binary FILE      installs this one
#   install.sh --dry-run          says what would be done, does nothing
#   install.sh --uninstall        removes what was installed; the pod's data and configuration stay
#   install.sh --root DIR         as if DIR were /, for packages and tests; systemd is left alone
#
# What it installs:
#   /usr/local/bin/podctl                                   the program, all of it
#   /etc/systemd/system/adea.service                        runs `podctl adea --config /etc/adea/adea.json`
#   /etc/adea, /var/lib/adea                                empty folders for the configuration and the data (only root)
#   /usr/local/share/bash-completion/completions/podctl     completion: bash
#   /usr/local/share/zsh/site-functions/_podctl             zsh
#   /usr/local/share/fish/vendor_completions.d/podctl.fish  fish
#   /usr/local/share/man/man1/podctl*.1                     manual pages
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root='' binary='' dry_run=no uninstall=no

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }
fail() { echo "install.sh: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --binary) [ $# -gt 1 ] || fail '--binary needs a file'; binary=$2; shift ;;
    --root) [ $# -gt 1 ] || fail '--root needs a folder'; root=${2%/}; shift ;;
    --dry-run) dry_run=yes ;;
    --uninstall) uninstall=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; echo "install.sh: unknown: $1" >&2; exit 2 ;;
  esac
  shift
done

program=$root/usr/local/bin/podctl
unit=$root/etc/systemd/system/adea.service
share=$root/usr/local/share
bash_file=$share/bash-completion/completions/podctl
zsh_file=$share/zsh/site-functions/_podctl
fish_file=$share/fish/vendor_completions.d/podctl.fish
manual=$share/man/man1

# Says what is done, and does it unless it is only to be said.
run() {
  echo "+ $*"
  [ "$dry_run" = yes ] || "$@"
}

# Whether systemd runs here and is meant.
has_systemd() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

check_rights() {
  if [ -z "$root" ] && [ "$dry_run" = no ] && [ "$(id -u)" != 0 ]; then fail 'needs root: sudo sh install.sh'; fi
}

find_binary() {
  if [ -z "$binary" ]; then
    for file in "$here/podctl" "$here/../target/dist/podctl"; do
      if [ -f "$file" ]; then binary=$file; break; fi
    done
  fi
  [ -n "$binary" ] || fail "no podctl beside this script. Build it with deploy/build, or name it with --binary"
  [ -f "$binary" ] || fail "no file $binary"
  version=$("$binary" --version 2>/dev/null) || fail "$binary doesn't run on this machine ($(uname -sm)): build it here, or take one for this kind of processor"
  case $version in
    podctl\ *) ;;
    *) fail "$binary is not podctl: it says \"$version\"" ;;
  esac
}

# Writes what a command prints to a file.
made_by() {
  file=$1
  shift
  echo "+ $* > $file"
  [ "$dry_run" = yes ] || { mkdir -p "$(dirname "$file")" && "$@" > "$file" && chmod 0644 "$file"; }
}

install_all() {
  find_binary
  echo "installing $version from $binary"
  run mkdir -p "$(dirname "$program")" "$(dirname "$unit")" "$manual"
  # In one step, as the program may be running: a file that runs can't be overwritten, but another can take its name.
  run cp "$binary" "$program.new"
  run chmod 0755 "$program.new"
  run mv -f "$program.new" "$program"
  run mkdir -p "$root/etc/adea" "$root/var/lib/adea"
  run chmod 0755 "$root/etc/adea"
  run chmod 0700 "$root/var/lib/adea"
  run cp "$here/adea.service" "$unit"
  run chmod 0644 "$unit"
  made_by "$bash_file" "$binary" completions bash
  made_by "$zsh_file" "$binary" completions zsh
  made_by "$fish_file" "$binary" completions fish
  run "$binary" man "$manual"
  if has_systemd; then run systemctl daemon-reload; fi
  next_steps
}

next_steps() {
  if [ "$dry_run" = yes ]; then
    echo 'nothing was done: this was only to say it'
    return
  fi
  if [ -f "$root/etc/adea/adea.json" ]; then
    echo 'installed. This machine has a pod already. To run it with this version:  systemctl restart adea'
    return
  fi
  cat <<'END'
installed. Next, on the first machine of a ring:
  podctl init --help            what there is to choose
  podctl init --start           makes a ring and starts this machine's pod
  podctl token create           prints what another machine needs to join
on each further machine:
  podctl join TOKEN@HOST:PORT --start
and from anywhere:
  podctl status
END
}

remove_all() {
  if has_systemd && [ -f "$unit" ]; then
    # A unit that isn't active is no reason to stop.
    run systemctl disable --now adea.service || echo 'adea.service could not be disabled; going on'
  fi
  for file in "$program" "$unit" "$bash_file" "$zsh_file" "$fish_file" "$manual"/podctl.1 "$manual"/podctl-*.1; do
    if [ -e "$file" ]; then run rm -f "$file"; fi
  done
  if has_systemd; then run systemctl daemon-reload; fi
  for folder in "$root/etc/adea" "$root/var/lib/adea"; do
    # Only when it is empty: what a pod has kept is for people to delete.
    if [ -d "$folder" ]; then
      if [ -z "$(ls -A "$folder")" ]; then run rmdir "$folder"; else echo "kept: $folder; to delete it for good: rm -r $folder"; fi
    fi
  done
}

check_rights
if [ "$uninstall" = yes ]; then remove_all; else install_all; fi
