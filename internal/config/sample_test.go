package config

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	hostSample  = "../../examples/host.toml"
	serveSample = "../../examples/serve.toml"
)

// compareAddr lets cmp compare addresses, whose fields it cannot see.
var compareAddr = cmpopts.EquateComparable(netip.Addr{})

func TestHostSampleIsTheDefault(t *testing.T) {
	want := DefaultHost()
	cache := ShareCache{Dir: "/var/cache/spillway/vod", MaxSize: 200 << 30, KeepFree: 10 << 30, Rules: []CacheRule{{"*.mpd", Duration(2 * time.Second)}, {"*.m3u8", Duration(2 * time.Second)}}}
	want.Shares = []HostShare{{Name: "media", Path: "/srv/media"}, {Name: "vod", Origin: "https://origin.example/vod/", Cache: cache.WithDefaults()}}
	vm := DefaultVM()
	vm.Name = "vm0"
	vm.Channels = []string{"unix:/run/spillway/vm0.sock"}
	vm.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("2001:db8::5")}
	vm.Shares = []string{"media"}
	want.VMs = []VM{vm}

	got, err := LoadHost(hostSample)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareAddr); diff != "" {
		t.Errorf("%s is not the default (-default +sample):\n%s", hostSample, diff)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	checkComplete(t, hostSample, reflect.TypeFor[Host]())
}

func TestServeSampleIsTheDefault(t *testing.T) {
	want := DefaultServe()
	want.Shares = []ServeShare{{Name: "media", Prefix: "/media/", Mount: "/mnt/media"}}

	got, err := LoadServe(serveSample)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s is not the default (-default +sample):\n%s", serveSample, diff)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	checkComplete(t, serveSample, reflect.TypeFor[Serve]())
}

// checkComplete reports every key of the configuration that the sample does not show.
func checkComplete(t *testing.T, file string, config reflect.Type) {
	t.Helper()
	var anything map[string]any
	meta, err := toml.DecodeFile(file, &anything)
	if err != nil {
		t.Fatal(err)
	}
	known := knownKeys(config)
	if len(known) < 10 {
		t.Fatalf("only %d known keys: %v", len(known), known)
	}
	for _, key := range known {
		if !slices.ContainsFunc(meta.Keys(), func(k toml.Key) bool { return slices.Equal(k, key) }) {
			t.Errorf("%s does not show the key %s", file, key)
		}
	}
}
