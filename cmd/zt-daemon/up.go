package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/daemon"
)

// lockPatience is how long `up` waits for a daemon that is just ending.
const lockPatience = 5 * time.Second

const upLong = `Start the daemon that keeps your clusters reachable.

Every command that needs it starts it in the background by itself; a service
manager runs it with --foreground. It serves you alone: its socket, its ports
and its state are refused to other users of this machine.`

const upExample = `  zt-daemon up
  zt-daemon up --foreground --log-level debug   # in a terminal, to watch it
  systemd-run --user --unit zt zt-daemon up --foreground`

func upCommand(env *environment) *cobra.Command {
	var foreground bool
	var level slog.Level
	cmd := &cobra.Command{
		Use:     "up",
		Short:   "Start the daemon",
		Long:    upLong,
		Example: upExample,
		Args:    withArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if foreground {
				return upForeground(cmd.Context(), env, newLog(env.stderr, level))
			}
			_, status, err := reach(cmd.Context(), env)
			how := "already runs"
			if errors.Is(err, daemon.ErrNotRunning) {
				_, status, err = startDaemon(cmd.Context(), env)
				how = "runs"
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(env.stdout, "zt-daemon %s (process %d, version %s)\n", how, status.PID, printable(status.Version))
			return nil
		},
	}
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay in this terminal and log to standard error")
	addLogLevel(cmd, env, &level)
	return cmd
}

func upForeground(ctx context.Context, env *environment, log *slog.Logger) error {
	state, dirs, err := env.state()
	if err != nil {
		return err
	}
	secrets, err := daemon.NewSecrets(daemon.SecretsConfig{Keyring: keyring(env), Dir: state.SecretsDir(), Log: log})
	if err != nil {
		return err
	}
	cfg := daemon.LaptopConfig{
		State:   state,
		Secrets: secrets,
		Socket:  dirs.Socket(),
		UID:     env.uid,
		HTTP:    daemon.HTTPConfig{Proxy: http.ProxyFromEnvironment},
		Version: programVersion().Version,
		Log:     log,
	}
	limitProcessors(env)
	defer keepMemorySmall(env)()
	patience := time.Now().Add(lockPatience)
	for {
		err := env.runLaptop(ctx, cfg)
		if _, held := errors.AsType[*daemon.LockedError](err); !held || time.Now().After(patience) {
			return err
		}
		if _, _, reached := reach(ctx, env); reached == nil {
			return err // it is not ending
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * startPoll):
		}
	}
}

// runLaptop runs the daemon of a laptop.
func runLaptop(ctx context.Context, cfg daemon.LaptopConfig) error {
	l, err := daemon.NewLaptop(cfg)
	if err != nil {
		return err
	}
	return l.Run(ctx)
}

// keyring is the operating system's, where asking for it has no side effects:
// on Linux without a session bus the library would start one.
func keyring(env *environment) func() (daemon.Keyring, error) {
	return func() (daemon.Keyring, error) {
		if env.goos != "windows" && env.goos != "darwin" && env.getenv("DBUS_SESSION_BUS_ADDRESS") == "" {
			dir := env.getenv("XDG_RUNTIME_DIR")
			if dir == "" {
				return daemon.Keyring{}, errors.New("there is no session bus (DBUS_SESSION_BUS_ADDRESS is not set)")
			}
			if _, err := os.Stat(filepath.Join(dir, "bus")); err != nil {
				return daemon.Keyring{}, errors.New("there is no session bus")
			}
		}
		return daemon.SystemKeyring(), nil
	}
}

func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// addLogLevel adds --log-level, whose default is in ZT_LOG_LEVEL.
func addLogLevel(cmd *cobra.Command, env *environment, level *slog.Level) {
	value := &levelFlag{level: level}
	cmd.Flags().Var(value, "log-level", "debug, info, warn or error (ZT_LOG_LEVEL)")
	fromEnvironment := env.getenv("ZT_LOG_LEVEL")
	if fromEnvironment == "" {
		return
	}
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("log-level") {
			if err := value.Set(fromEnvironment); err != nil {
				return usagef("", "ZT_LOG_LEVEL is %q: %v", fromEnvironment, err)
			}
		}
		if check != nil {
			return check(cmd, args)
		}
		return nil
	}
}

type levelFlag struct{ level *slog.Level }

func (l *levelFlag) String() string {
	if l.level == nil {
		return "info"
	}
	return strings.ToLower(l.level.String())
}

// Type is what the help shows.
func (l *levelFlag) Type() string { return "level" }

// Set takes the name of a level.
func (l *levelFlag) Set(s string) error {
	switch strings.ToLower(s) {
	case "debug", "info", "warn", "error":
		return l.level.UnmarshalText([]byte(s))
	}
	return errors.New("want debug, info, warn or error")
}
