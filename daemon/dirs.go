package daemon

import (
	"errors"
	"path/filepath"
)

// Dirs are where a laptop keeps things. FindDirs computes them.
type Dirs struct {
	State   string // keys, grants, documents, settings, the daemon's lock and log
	Runtime string // the daemon's Unix socket
	Config  string // what an administrator made: network keys, signer's key
}

// FindDirs computes the directories of a person for an operating system
// (runtime.GOOS's names) from their home directory and environment. It looks
// at no file and makes none.
//
//	          State                              Runtime               Config
//	Linux …   $XDG_STATE_HOME/zt                 $XDG_RUNTIME_DIR/zt   $XDG_CONFIG_HOME/zt
//	          or ~/.local/state/zt               or STATE/run          or ~/.config/zt
//	macOS     ~/Library/Application Support/zt   STATE/run             STATE/admin
//	Windows   %LocalAppData%\zt                  STATE\run             %AppData%\zt
//
// The XDG variables are ignored unless they hold an absolute path, as the XDG
// Base Directory Specification says.
func FindDirs(goos, home string, getenv func(string) string) (Dirs, error) {
	var d Dirs
	switch goos {
	case "windows":
		local, roaming := getenv("LocalAppData"), getenv("AppData")
		if local == "" || roaming == "" {
			return d, errors.New("%LocalAppData% or %AppData% is not set: where to keep state is unknown")
		}
		d.State, d.Config = filepath.Join(local, "zt"), filepath.Join(roaming, "zt")
	case "darwin", "ios":
		if home == "" {
			return d, errNoHome
		}
		d.State = filepath.Join(home, "Library", "Application Support", "zt")
		d.Config = filepath.Join(d.State, "admin")
	default:
		xdg := func(name string, fallback ...string) (string, error) {
			if dir := getenv(name); filepath.IsAbs(dir) {
				return filepath.Join(dir, "zt"), nil
			}
			if home == "" {
				return "", errNoHome
			}
			return filepath.Join(append(append([]string{home}, fallback...), "zt")...), nil
		}
		var err error
		if d.State, err = xdg("XDG_STATE_HOME", ".local", "state"); err != nil {
			return d, err
		}
		if d.Config, err = xdg("XDG_CONFIG_HOME", ".config"); err != nil {
			return d, err
		}
		if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
			d.Runtime = filepath.Join(dir, "zt")
		}
	}
	if d.Runtime == "" {
		d.Runtime = filepath.Join(d.State, "run")
	}
	return d, nil
}

var errNoHome = errors.New("the home directory is unknown ($HOME is not set): where to keep state is unknown")

// DirsUnder keeps everything in one directory, for a second laptop of the same
// person on one machine and for tests.
func DirsUnder(dir string) Dirs {
	return Dirs{State: dir, Runtime: filepath.Join(dir, "run"), Config: filepath.Join(dir, "admin")}
}

// Socket is the daemon's Unix socket.
func (d Dirs) Socket() string { return filepath.Join(d.Runtime, "daemon.sock") }
