package wireguard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [<tunnel>] [--json] [--address <listen>] [--config <path> [--adapter <name>]]",
		Short: "Shows the tunnels of the running Caddy and their peers",
		Long: `
Shows what the running Caddy knows of its tunnels, or of one of them, in the
manner of wg(8): where each peer is, when it was last heard, and how much has
been carried; also which TCP/IP stack a tunnel has, and why. No secret is shown.

With --json it prints what the admin API answers at /wireguard/.

The running Caddy is asked through its admin API at
'` + caddy.DefaultAdminListen + `'. You may explicitly specify the --address, or
use the --config flag to load the admin address from your config, if not using
the default.`,
		Args: cobra.MaximumNArgs(1),
	}
	flags := cmd.Flags()
	asJSON := flags.Bool("json", false, "Print the admin API's answer")
	address := flags.String("address", "", "Address of the administration API listener (if --config is not used)")
	config := flags.StringP("config", "c", "", "Configuration file (if --address is not used)")
	adapter := flags.StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true // what goes wrong from here on is not the usage
		admin, err := caddycmd.DetermineAdminAPIAddress(*address, nil, *config, *adapter)
		if err != nil {
			return fmt.Errorf("determining the admin API's address: %w", err)
		}
		answer, err := askForTunnels(admin)
		if err != nil {
			return err
		}
		if len(args) == 1 {
			if answer, err = answer.only(args[0]); err != nil {
				return err
			}
		}
		switch {
		case *asJSON && len(args) == 1:
			return printJSON(cmd.OutOrStdout(), answer[0].raw)
		case *asJSON:
			return printJSON(cmd.OutOrStdout(), answer)
		case len(answer) == 0:
			return fmt.Errorf("there is no tunnel to show: the configuration of the Caddy at %s has no wireguard block", admin)
		}
		_, err = io.WriteString(cmd.OutOrStdout(), answer.text(time.Now()))
		return err
	}
	return cmd
}

// shownTunnel is a tunnel as the admin API described it. The text is kept,
// because a newer Caddy may say more than this program knows of.
type shownTunnel struct {
	tunnelInfo
	raw json.RawMessage
}

func (t *shownTunnel) UnmarshalJSON(text []byte) error {
	t.raw = bytes.Clone(text)
	return json.Unmarshal(text, &t.tunnelInfo)
}

func (t shownTunnel) MarshalJSON() ([]byte, error) { return t.raw, nil }

type shownTunnels []shownTunnel

// askForTunnels asks the Caddy whose admin API is at address.
func askForTunnels(address string) (tunnels shownTunnels, err error) {
	response, err := caddycmd.AdminAPIRequest(address, http.MethodGet, adminEndpoint, nil, nil)
	switch {
	case err == nil:
	case strings.Contains(err.Error(), "HTTP 404"):
		return nil, fmt.Errorf("asking Caddy at %s for its tunnels: it has no wireguard module; it is built without Homeward, or this is not its admin address, which --address or --config can name: %w", address, err)
	case strings.Contains(err.Error(), "HTTP "):
		return nil, fmt.Errorf("asking Caddy at %s for its tunnels: %w", address, err)
	default:
		return nil, fmt.Errorf("asking Caddy at %s for its tunnels: no Caddy answers there; start it, or name its admin address with --address or --config: %w", address, err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&tunnels); err != nil {
		return nil, fmt.Errorf("reading the answer of %s, which seems not to be Caddy's admin address; name that with --address or --config: %w", address, err)
	}
	return tunnels, nil
}

// only returns the tunnel called name, and no other.
func (s shownTunnels) only(name string) (shownTunnels, error) {
	names := make([]string, 0, len(s))
	for i, t := range s {
		if t.Name == name {
			return s[i : i+1], nil
		}
		names = append(names, t.Name)
	}
	return nil, unknownTunnel(name, names)
}

func printJSON(w io.Writer, answer any) error {
	encoded, err := json.MarshalIndent(answer, "", "\t")
	if err != nil {
		return fmt.Errorf("printing the admin API's answer: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", encoded)
	return err
}
