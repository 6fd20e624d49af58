package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/stretchr/testify/require"
)

// testAPI is the API of a master without workers that serves text.
func testAPI(t *testing.T, text string) (*Master, http.Handler) {
	t.Helper()
	m := newMaster(testOptions(writeConfig(t, text), testLog{t}))
	g, err := m.firstGeneration()
	require.NoError(t, err)
	g.number = 1
	m.shared = newRegistryRig(t).registry
	require.NoError(t, m.shared.assign(g))
	m.shared.committed(g)
	m.current = g
	return m, m.adminHandler()
}

// call asks the API and returns the status and the body.
func call(t *testing.T, api http.Handler, method, target, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "http://cloud-cup"+target, strings.NewReader(body))
	api.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{uid: os.Geteuid()})))
	return w.Code, w.Body.String()
}

func TestAdminServesOnlyItsUserAndGroup(t *testing.T) {
	me, group := os.Geteuid(), 4711
	_, api := testAPI(t, configText("127.0.0.1:0"))
	for _, c := range []struct {
		group int
		who   any
		want  int
	}{
		{noGroup, peer{uid: me}, http.StatusOK},
		{noGroup, peer{uid: 0}, http.StatusOK},
		{noGroup, peer{uid: me + 1, groups: []int{group}}, http.StatusForbidden},
		{noGroup, peer{uid: -1, groups: []int{noGroup}}, http.StatusForbidden},
		{noGroup, nil, http.StatusForbidden},
		{group, peer{uid: me + 1, groups: []int{1, group}}, http.StatusOK},
		{group, peer{uid: me + 1, groups: []int{1, 2}}, http.StatusForbidden},
		{group, peer{uid: me + 1}, http.StatusForbidden},
	} {
		a := &adminServer{group: c.group}
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/v1/version", nil)
		a.onlyForPeers(slog.New(slog.DiscardHandler), api).ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, c.who)))
		require.Equal(t, c.want, w.Code, "%+v", c)
	}
}

// Strangers cannot have more than a few connections.
func TestStrangersAreBounded(t *testing.T) {
	a := &adminServer{group: noGroup, strange: map[net.Conn]struct{}{}}
	var conns []net.Conn
	for range strangersMax + 3 {
		conn, other := net.Pipe() // of which the kernel does not tell whose it is
		defer other.Close()
		defer conn.Close()
		a.boundStrangers(conn, http.StateNew)
		a.boundStrangers(conn, http.StateActive)
		conns = append(conns, conn)
	}
	for i, conn := range conns {
		err := conn.SetDeadline(time.Now())
		require.Equal(t, i >= strangersMax, err != nil, "connection %d", i)
		a.boundStrangers(conn, http.StateClosed)
	}
	require.Empty(t, a.strange)
}

// Who connects is told by the kernel, with all groups.
func TestPeerOfASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := listenSocket(path, noGroup)
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer client.Close()
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	groups, err := os.Getgroups()
	require.NoError(t, err)
	who := peerFrom(rememberPeer(t.Context(), conn))
	require.Equal(t, os.Geteuid(), who.uid)
	require.Equal(t, append([]int{os.Getegid()}, groups...), who.groups)
}

func TestStaleAdminSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "admin.sock")
	l, err := listenSocket(path, noGroup)
	require.NoError(t, err)
	_, err = listenSocket(path, noGroup)
	require.ErrorContains(t, err, fmt.Sprintf("(pid %d)", os.Getpid()))
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	l, err = listenSocket(path, noGroup)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, l.Close())

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = listenSocket(path, noGroup)
	require.ErrorContains(t, err, "is no socket")
}

// With a group, socket and folder are open to it and nobody else.
func TestAdminSocketOfAGroup(t *testing.T) {
	group := os.Getegid()
	if os.Geteuid() == 0 {
		group = 54321
	}
	dir := filepath.Join(t.TempDir(), "sub")
	path := filepath.Join(dir, "admin.sock")
	l, err := listenSocket(path, group)
	require.NoError(t, err)
	defer l.Close()
	for name, mode := range map[string]os.FileMode{dir: 0o750, path: 0o660} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), name)
		require.EqualValues(t, group, info.Sys().(*syscall.Stat_t).Gid, name)
	}
}

func TestGroupID(t *testing.T) {
	gid, err := groupID("")
	require.NoError(t, err)
	require.Equal(t, noGroup, gid)
	gid, err = groupID("4711")
	require.NoError(t, err)
	require.Equal(t, 4711, gid)
	gid, err = groupID("root")
	require.NoError(t, err)
	require.Zero(t, gid)
	_, err = groupID("no-such-group")
	require.ErrorContains(t, err, "no-such-group")
}

// Whatever is asked wrongly is answered by JSON that names what is wrong.
func TestAPIRefusals(t *testing.T) {
	_, api := testAPI(t, configText("127.0.0.1:0"))
	for _, c := range []struct {
		method, target, body string
		status               int
		says                 string
	}{
		{"GET", "/", "", 404, "there is no /; there are "},
		{"GET", "/v1/nothing", "", 404, "/v1/status"},
		{"POST", "/v1/status", "", 405, "/v1/status is for GET, not POST"},
		{"DELETE", "/v1/config", "", 405, "GET and POST"},
		{"GET", "/v1/reload", "", 405, "POST"},
		{"GET", "/v1/status?x=1", "", 400, `unknown parameter "x"`},
		{"GET", "/v1/routes?match=/a&match=/b", "", 400, `"match" stands twice`},
		{"GET", "/v1/routes?match=%zz", "", 400, "query"},
		{"GET", "/v1/routes?match=http://%5b::1", "", 400, "neither a URL nor a path"},
		{"POST", "/v1/config?dry_run=maybe", "{}", 400, "want 1 or 0"},
		{"POST", "/v1/config?dry_run=1&save=1", "{}", 400, "exclude each other"},
		{"POST", "/v1/config?name=x.json", "", 422, "x.json:1:1: the configuration is empty"},
		{"POST", "/v1/config?dry_run=1", strings.Repeat(" ", configBytesMax+1), 413, "larger than"},
		{"PATCH", "/v1/backends/127.0.0.1:9", "", 400, "it is empty"},
		{"PATCH", "/v1/backends/127.0.0.1:9", "{}", 400, "nothing to change"},
		{"PATCH", "/v1/backends/127.0.0.1:9", `{"state": "gone"}`, 400, `state "gone": want enabled, drain or disabled`},
		{"PATCH", "/v1/backends/127.0.0.1:9", `{"stat": "drain"}`, 400, `unknown field "stat"`},
		{"PATCH", "/v1/backends/127.0.0.1:9", `{"state": 1}`, 400, "cannot unmarshal number"},
		{"PATCH", "/v1/backends/127.0.0.1:9", `{"state": "drain"}{}`, 400, "something follows"},
		{"PATCH", "/v1/backends/127.0.0.1:9", `{"weight": 1001}`, 400, "want 0 to 1000"},
		{"PATCH", "/v1/backends/127.0.0.1:9", `{"weight": 1, "configured_weight": true}`, 400, "exclude each other"},
		{"PATCH", "/v1/backends/127.0.0.1:9", strings.Repeat(" ", askedBytesMax+1), 413, "larger than"},
		{"PATCH", "/v1/backends/127.0.0.1:8", `{"state": "drain"}`, 404, `no backend "127.0.0.1:8"`},
		{"GET", "/v1/backends/127.0.0.1:9", "", 405, "PATCH"},
		{"POST", "/v1/stop?now=yes", "", 400, "want 1 or 0"},
	} {
		status, text := call(t, api, c.method, c.target, c.body)
		require.Equal(t, c.status, status, "%s %s: %s", c.method, c.target, text)
		var f control.Failure
		require.NoError(t, json.Unmarshal([]byte(text), &f), "%s %s: %s", c.method, c.target, text)
		require.Contains(t, f.Error, c.says, "%s %s", c.method, c.target)
	}
}

// docs/control.md has the whole API.
func TestAPIIsDocumented(t *testing.T) {
	m, _ := testAPI(t, configText("127.0.0.1:0"))
	text, err := os.ReadFile(filepath.Join("..", "docs", "control.md"))
	require.NoError(t, err)
	for _, e := range m.endpoints() {
		at := strings.Index(string(text), "| `"+e.method+" "+e.path+"` |")
		require.Positive(t, at, "docs/control.md does not have %s %s: add it", e.method, e.path)
		line, _, _ := strings.Cut(string(text[at:]), "\n")
		for _, name := range e.query {
			require.Contains(t, line, "`"+name, "%s %s", e.method, e.path)
		}
	}
}

// No request ends the master or gets an answer that is not JSON, whatever it
// is made of.
func TestAPITakesAnything(t *testing.T) {
	m, api := testAPI(t, configText("127.0.0.1:0"))
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	methods := []string{"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "X"}
	pieces := []string{
		"/v1/config", "/v1/routes", "/v1/backends", "/v1/status", "/v1/workers", "/readyz", "/", "..", "//", "%2f", "%00", "?", "&", "=",
		"match", "name", "dry_run=1", "1", "127.0.0.1:9", "unix:", "é", "%e9", "{", "}", "null", "[", `"`, `"state"`, ":", `"drain"`, "-1", "1e99",
	}
	some := func() string {
		var b strings.Builder
		for range random.IntN(6) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		return b.String()
	}
	for range 3000 {
		target := "/" + some()
		r, err := http.NewRequest(methods[random.IntN(len(methods))], "http://cloud-cup"+target, strings.NewReader(some()))
		if err != nil {
			continue // no client can send it
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{uid: os.Geteuid()})))
		what := fmt.Sprintf("%s %s: %d %s (seed %d)", r.Method, target, w.Code, w.Body, seed)
		if w.Code >= 300 && w.Code < 400 {
			continue // ServeMux: a path that could be shorter
		}
		require.Less(t, w.Code, 500, what)
		if w.Code != http.StatusOK {
			require.True(t, json.Valid(w.Body.Bytes()), what)
		}
	}
	require.Equal(t, m.current, m.generation(), "nothing was applied")
}

func TestRoutesAreMatchedAsByWorkers(t *testing.T) {
	_, api := testAPI(t, `{"root": "127.0.0.1:0", "routes": {
		"*": {"backends": [{"host": "127.0.0.1:1"}]},
		"/game/*": {"backends": [{"host": "127.0.0.1:2"}]},
		"/caf%C3%A9": {"backends": [{"host": "127.0.0.1:3"}]},
		"example.com/*": {"backends": [{"host": "127.0.0.1:4"}]},
		"example.com:8080/x": {"backends": [{"host": "127.0.0.1:5"}]},
		"[::1]/*": {"backends": [{"host": "127.0.0.1:6"}]}
	}}`)
	for target, want := range map[string]string{
		"/":                         "*",
		"/game":                     "*",
		"/game/":                    "/game/*",
		"/game/1?x=/y":              "/game/*",
		"/café":                     "/caf%C3%A9",
		"/caf%C3%A9":                "/caf%C3%A9",
		"example.com/game/1":        "example.com/*",
		"http://EXAMPLE.com":        "example.com/*",
		"https://example.com:8080/": "example.com/*",
		"example.com:8080/x":        "example.com:8080/x",
		"http://[::1]:80/game/1":    "[::1]/*",
		"other.test/game/x":         "/game/*",
		"/r?to=http://example.com/": "*",
		"//game/1":                  "*",
	} {
		status, text := call(t, api, "GET", "/v1/routes?match="+strings.NewReplacer("%", "%25", "&", "%26", "?", "%3f", "é", "%c3%a9").Replace(target), "")
		require.Equal(t, 200, status, text)
		var routes []control.RouteStatus
		require.NoError(t, json.Unmarshal([]byte(text), &routes))
		require.Len(t, routes, 1)
		require.Equal(t, want, routes[0].Pattern, target)
		require.Len(t, routes[0].Backends, 1)
	}
	_, text := call(t, api, "GET", "/v1/routes", "")
	var routes []control.RouteStatus
	require.NoError(t, json.Unmarshal([]byte(text), &routes))
	require.Len(t, routes, 6)
}

func TestBackendsAreChanged(t *testing.T) {
	_, api := testAPI(t, `{"root": "127.0.0.1:0", "routes": {
		"*": {"backends": [{"host": "127.0.0.1:1", "weight": 3}, {"host": "unix:/run/x.sock"}]},
		"/x": {"backends": [{"host": "127.0.0.1:1", "weight": 2}, {"host": "no.test:80"}]}
	}}`)
	change := func(host, body string) control.BackendChanged {
		status, text := call(t, api, "PATCH", "/v1/backends/"+host, body)
		require.Equal(t, 200, status, text)
		var c control.BackendChanged
		require.NoError(t, json.Unmarshal([]byte(text), &c))
		return c
	}
	c := change("127.0.0.1:1", `{"state": "drain"}`)
	require.Equal(t, control.BackendEnabled, c.Before.State)
	require.Equal(t, control.BackendDrain, c.After.State)
	require.Equal(t, []int{2, 3}, c.After.Weights)
	require.Equal(t, 2, c.After.Routes)
	require.Nil(t, c.After.WeightSet)
	require.Equal(t, control.HealthUp, c.After.Health)
	c = change("127.0.0.1:1", `{"weight": 0, "state": "disabled"}`)
	require.Equal(t, control.BackendDrain, c.Before.State)
	require.Equal(t, control.BackendDisabled, c.After.State)
	require.Zero(t, *c.After.WeightSet)
	c = change("127.0.0.1:1", `{"configured_weight": true}`)
	require.Nil(t, c.After.WeightSet)
	require.Equal(t, control.BackendDisabled, c.After.State)

	_, text := call(t, api, "GET", "/v1/backends", "")
	var list []control.BackendStatus
	require.NoError(t, json.Unmarshal([]byte(text), &list))
	require.Len(t, list, 3)
	require.Equal(t, control.HealthUnresolved, list[1].Health)
	require.Empty(t, list[1].Addresses)
	change("unix:%2Frun%2Fx.sock", `{"state": "drain"}`)
	require.Equal(t, "unix:/run/x.sock", list[2].Host)
}

func TestHealthOfAddresses(t *testing.T) {
	second := int64(1e9)
	in, out, longer, trial := rowView{Named: true}, rowView{Named: true, OutUntil: 12 * second, Failures: 7},
		rowView{Named: true, OutUntil: 15 * second, Failures: 5}, rowView{Named: true, OutUntil: 9 * second}
	for _, c := range []struct {
		rows     []rowView
		health   string
		outFor   float64
		failures uint32
	}{
		{nil, control.HealthUnresolved, 0, 0},
		{[]rowView{{OutUntil: 0}}, control.HealthUnresolved, 0, 0},
		{[]rowView{in}, control.HealthUp, 0, 0},
		{[]rowView{longer, out}, control.HealthOut, 2, 7},
		{[]rowView{out, longer}, control.HealthOut, 2, 7},
		{[]rowView{out, trial}, control.HealthTrial, 0, 7},
		{[]rowView{trial, in, out}, control.HealthUp, 0, 7},
	} {
		b := control.BackendStatus{Health: control.HealthUnresolved}
		healthOf(c.rows, 10*second, &b)
		require.Equal(t, c.health, b.Health)
		require.Equal(t, c.outFor, b.OutFor)
		require.Equal(t, c.failures, b.Failures)
	}
}

// All that a change can be called is a key of the top level, but for the contents
// of files.
func TestSettingsAreKeys(t *testing.T) {
	known := map[string]bool{"": true, "certificates": true}
	for _, key := range config.Keys() {
		first, _, _ := strings.Cut(key.Name, ".")
		known[first] = true
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[config.Config]()) {
		key, other := settingOf[field.Name]
		if !other {
			key = strings.ToLower(field.Name)
		}
		require.True(t, known[key] || field.Anonymous, field.Name)
	}
}

func TestChanges(t *testing.T) {
	parsed := func(text string) *config.Config {
		c, err := config.Parse("x.json", []byte(text), t.TempDir())
		require.NoError(t, err)
		return c
	}
	a := parsed(`{"root": ":80", "routes": {"*": {"backends": [{"host": "b:1"}]}, "/old": {"backends": [{"host": "b:1"}]}}}`)
	b := parsed(`{"root": ":80", "limits": {"connections": 7},
		"routes": {"/new": {"backends": [{"host": "b:1"}]}, "*": {"backends": [{"host": "b:1", "max_failure": 9}]}}}`)
	require.Equal(t, "nothing", summary(changesBetween(a, a)))
	c := changesBetween(a, b)
	require.Equal(t, &control.Changes{
		Added: 1, Removed: 1, Changed: 1, Routes: []string{"+ /new", "~ *", "- /old"}, Settings: []string{"limits"},
	}, c)
	require.Equal(t, "limits, + /new, ~ *, - /old", summary(c))

	// What changed is called as in the file.
	for text, want := range map[string]string{
		`"root": ":80"`: "nothing",
		`"root": ":81"`: "root",
		`"root": {"address": ":80", "redirect": "https"}`:                                      "root",
		`"root": ":80", "access_log": {"file": "a.log"}`:                                       "access_log, ~ *, ~ /old",
		`"root": ":80", "trusted_proxies": ["10.0.0.0/8", "unix:"]`:                            "trusted_proxies, ~ *, ~ /old",
		`"root": ":80", "request_id": false, "host_header": "backend", "forwarded": "rfc7239"`: "forwarded, host_header, request_id, ~ *, ~ /old",
		`"root": ":80", "pin": true, "workers": 3, "timeouts": {"drain": "7s"}`:                "workers, pin, timeouts, ~ *, ~ /old",
	} {
		to := parsed(`{` + text + `, "routes": {"*": {"backends": [{"host": "b:1"}]}, "/old": {"backends": [{"host": "b:1"}]}}}`)
		require.Equal(t, want, summary(changesBetween(a, to)), text)
	}
	at := parsed(`{"root": ":80", "access_log": {"file": "/a.log"}, "routes": {"*": {"backends": [{"host": "b:1"}]}}}`)
	below := parsed(`{"root": ":80",
		"access_log": {"file": "/a.log"}, "routes": {"*": {"backends": [{"host": "b:1"}]}}}`)
	require.Equal(t, "nothing", summary(changesBetween(at, below)))
	ssl := *a
	ssl.SSL = &config.SSL{MinVersion: config.SSLVersion13}
	ssl.Policies = []config.Policy{{SSL: ssl.SSL}}
	require.Equal(t, "ssl", summary(changesBetween(a, &ssl)))
	renewed := *a
	renewed.Files = config.Files{"a.pem": []byte("new")}
	require.Equal(t, "certificates", summary(changesBetween(a, &renewed)))

	var many []string
	for i := range 50 {
		many = append(many, fmt.Sprintf(`"/%d": {"backends": [{"host": "b:1"}]}`, i))
	}
	c = changesBetween(a, parsed(`{"root": ":80", "routes": {"*": {"backends": [{"host": "b:1"}]}, `+strings.Join(many, ",")+`}}`))
	require.Equal(t, 50, c.Added)
	require.Len(t, c.Routes, changesShown)
	require.True(t, strings.HasSuffix(summary(c), ", ..."))
}

func TestSave(t *testing.T) {
	r := startRig(t, nil)
	text := configText("127.0.0.1:0", "127.0.0.1:11")
	require.NoError(t, os.Chmod(r.path, 0o640))
	applied, err := r.client.Apply("new.json", []byte(text), control.ApplyAndSave)
	require.NoError(t, err)
	require.Equal(t, r.path, applied.Saved)
	require.EqualValues(t, 1, applied.Before)
	require.EqualValues(t, 2, applied.Generation)
	require.Equal(t, []string{"~ *"}, applied.Changes.Routes)
	saved, err := os.ReadFile(r.path)
	require.NoError(t, err)
	require.Equal(t, text, string(saved))
	info, err := os.Stat(r.path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
	status, err := r.client.Status()
	require.NoError(t, err)
	require.Equal(t, "file", status.Config.Source)
	require.Empty(t, status.Config.Drift)

	// What no worker takes is not saved either.
	_, err = r.client.Apply("new.json", []byte(configText("127.0.0.1:0", "refuse.test:11")), control.ApplyAndSave)
	require.ErrorContains(t, err, "nothing was changed")
	saved, err = os.ReadFile(r.path)
	require.NoError(t, err)
	require.Equal(t, text, string(saved))
	left, err := os.ReadDir(filepath.Dir(r.path))
	require.NoError(t, err)
	require.False(t, slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }), "%v", left)

	// What cannot be saved is not put in force either.
	require.NoError(t, os.Remove(r.path))
	_, err = r.client.Apply("new.json", []byte(configText("127.0.0.1:0", "127.0.0.1:12")), control.ApplyAndSave)
	require.ErrorContains(t, err, "nothing was changed: save ")
	g, _ := ask(t, r.addresses()[0])
	require.EqualValues(t, 2, g)
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real.json"), filepath.Join(dir, "link.json")
	require.NoError(t, os.WriteFile(file, []byte("old"), 0o604))
	require.NoError(t, os.Symlink("real.json", link))
	holds := func(want string) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, want, string(text))
	}
	undo, err := replaceFile(link, []byte("new"))
	require.NoError(t, err)
	holds("new")
	info, err := os.Lstat(link)
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink, info.Mode().Type(), "a link stays one")
	info, err = os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o604), info.Mode().Perm())
	require.NoError(t, undo())
	holds("old")

	if os.Geteuid() == 0 {
		return // root may write everywhere; see the test of the programs
	}
	require.NoError(t, os.Chmod(dir, 0o500))
	_, err = replaceFile(file, []byte("new"))
	require.ErrorContains(t, err, "its folder cannot be written to")
	require.NoError(t, os.Chmod(dir, 0o700))
	holds("old")
}

func TestStopByAPI(t *testing.T) {
	r := startRig(t, nil)
	stopping, err := r.client.Stop(false)
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), stopping.PID)
	require.False(t, stopping.Now)
	require.NoError(t, <-r.done)
}

// Clients that say half of something, or do not read, hold up nobody.
func TestStuckClients(t *testing.T) {
	r := startRig(t, nil)
	socket := filepath.Join(filepath.Dir(r.path), "admin.sock")
	for _, begin := range []string{
		"", "GET /v1/st", "POST /v1/config HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
		strings.Repeat("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 1000),
	} {
		conn, err := net.Dial("unix", socket)
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
		_, _ = conn.Write(bytes.Repeat([]byte(begin), 3)) // not all of it is taken
	}
	_, err := r.client.Reload()
	require.NoError(t, err)
	_, err = r.client.Status()
	require.NoError(t, err)
}
