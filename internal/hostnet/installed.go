package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// installed is what the kernel holds of our table: its own attributes, those of its chains, and the rules.
// It is equal between two calls when nobody has changed the table. To ask costs
// a hundredth of what installing it anew does.
func installed(table string) ([]byte, error) {
	var all []byte
	for _, kind := range []int{unix.NFT_MSG_GETTABLE, unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_GETRULE} {
		objects, err := nftables(kind, unix.NLM_F_DUMP)
		if err != nil {
			return nil, fmt.Errorf("look at table %s: %w", table, err)
		}
		for _, object := range objects {
			// The name of the table is the first attribute of all three.
			attributes, err := nl.ParseRouteAttr(object)
			if err != nil {
				return nil, fmt.Errorf("look at table %s: %w", table, err)
			}
			if len(attributes) > 0 && string(bytes.TrimRight(attributes[0].Value, "\x00")) == table {
				all = append(all, object...)
			}
		}
	}
	return all, nil
}

// generation counts the changes that were made to the firewall of the host.
func generation() (uint32, error) {
	objects, err := nftables(unix.NFT_MSG_GETGEN, 0)
	if err == nil && len(objects) != 1 {
		err = errors.New("no single answer")
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the firewall's generation: %w", err)
	}
	attributes, err := nl.ParseRouteAttr(objects[0])
	if err != nil {
		return 0, fmt.Errorf("ask for the firewall's generation: %w", err)
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value), nil
		}
	}
	return 0, errors.New("the firewall has no generation")
}

// nftables asks the kernel and returns the attributes of each object in its answer.
func nftables(kind, flags int) ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	for i, a := range answers {
		answers[i] = a[min(nl.SizeofNfgenmsg, len(a)):]
	}
	return answers, nil
}
