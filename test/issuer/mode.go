package issuer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// modes are the names under which a command line sets the fields of Config.
// An entry that takes no value refuses one.
var modes = []struct {
	name, value string // value: "" or what follows "="
	set         func(c *Config, value string) error
}{
	{"exact-ports", "PORT[,PORT…]", setPorts},
	{"no-prompt-none", "", func(c *Config, _ string) error { c.NoPromptNone = true; return nil }},
	{"client-secret", "SECRET", func(c *Config, v string) error { c.ClientSecret = v; return nil }},
	{"groups-claim", "NAME", func(c *Config, v string) error { c.GroupsClaim = v; return nil }},
	{"group-overage", "", func(c *Config, _ string) error { c.GroupOverage = true; return nil }},
	{"has-groups", "", func(c *Config, _ string) error { c.HasGroups = true; return nil }},
	{"token-lifetime", "DURATION", func(c *Config, v string) error { return setDuration(&c.TokenLifetime, v) }},
	{"refresh-lifetime", "DURATION", func(c *Config, v string) error { return setDuration(&c.RefreshLifetime, v) }},
	{"keep-refresh-tokens", "", func(c *Config, _ string) error { c.KeepRefreshTokens = true; return nil }},
	{"pairwise", "", func(c *Config, _ string) error { c.PairwiseSubjects = true; return nil }},
	{"refresh-with-nonce", "", func(c *Config, _ string) error { c.RefreshWithNonce = true; return nil }},
	{"no-auth-time", "", func(c *Config, _ string) error { c.NoAuthTime = true; return nil }},
	{"no-nonce", "", func(c *Config, _ string) error { c.NoNonce = true; return nil }},
	{"iss-parameter", "", func(c *Config, _ string) error { c.IssParameter = true; return nil }},
	{"algorithm", "RS256|ES256", func(c *Config, v string) error { c.Algorithm = v; return nil }},
	{"clock-offset", "DURATION", func(c *Config, v string) error { return setDuration(&c.ClockOffset, v) }},
}

// SetMode sets a field of c by its command-line form, NAME or NAME=VALUE; see
// ModeHelp for the names.
func (c *Config) SetMode(mode string) error {
	name, value, has := strings.Cut(mode, "=")
	k := slices.IndexFunc(modes, func(m struct {
		name, value string
		set         func(*Config, string) error
	}) bool {
		return m.name == name
	})
	switch {
	case k < 0:
		return fmt.Errorf("mode %q is not known; there are %s", name, ModeHelp())
	case modes[k].value == "" && has:
		return fmt.Errorf("mode %s takes no value", name)
	case modes[k].value != "" && value == "":
		return fmt.Errorf("mode %s needs a value: %s=%s", name, name, modes[k].value)
	}
	if err := modes[k].set(c, value); err != nil {
		return fmt.Errorf("mode %s: %w", name, err)
	}
	return nil
}

// ModeHelp lists the modes, for a usage text.
func ModeHelp() string {
	var all []string
	for _, m := range modes {
		s := m.name
		if m.value != "" {
			s += "=" + m.value
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

func setPorts(c *Config, v string) error {
	c.ExactRedirectPorts = nil
	for p := range strings.SplitSeq(v, ",") {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("%q is no port", p)
		}
		c.ExactRedirectPorts = append(c.ExactRedirectPorts, uint16(n))
	}
	return nil
}

func setDuration(d *time.Duration, v string) (err error) {
	*d, err = time.ParseDuration(v)
	return err
}
