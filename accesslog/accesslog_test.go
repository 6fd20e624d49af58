package accesslog

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/cloud-cup/cloud-cup/message"
)

// atSecond is the time of the samples, in the zone of the test.
var atSecond = time.Date(2026, 11, 22, 22, 6, 8, 123456789, time.FixedZone("", 3600))

func sample() *Record {
	return &Record{
		End:       atSecond.UnixNano(),
		Client:    []byte("192.0.2.7"),
		Method:    []byte("GET"),
		Target:    []byte("/game/1?q=a b"),
		Protocol:  []byte("HTTP/1.1"),
		Referer:   []byte("http://cup.test/\"x"),
		UserAgent: []byte("curl/8 (\xc3\xa9)"),
		RequestID: []byte("0123456789abcdef"),
		Status:    200,
		Bytes:     1234,
		BytesIn:   5,
		Attempts:  2,
		Backend:   "127.0.0.1:8081",
		Route:     "/game/*",
		Total:     1500 * time.Microsecond,
		Connect:   Unknown,
		Head:      1200 * time.Microsecond,
		Own:       Unknown,
	}
}

// inZone makes the texts of w those of a zone an hour east.
func inZone(w *Writer, r *Record) *Writer {
	w.second = r.End / 1e9
	w.local = atSecond.AppendFormat(nil, "02/Jan/2006:15:04:05 -0700")
	w.date = atSecond.AppendFormat(nil, "2006-01-02T15:04:05")
	w.zone = atSecond.AppendFormat(nil, "-07:00")
	return w
}

// The lines are an interface: whoever changes one breaks what reads them.
func TestGoldenLines(t *testing.T) {
	full := sample()
	full.Connect, full.Own, full.Reason = 90*time.Microsecond, 7*time.Microsecond, message.ReasonBackendReset
	refused := &Record{End: full.End, Target: []byte("\x16\x03\x01 x\""), Status: 400, Bytes: 60,
		Reason: message.ReasonBadRequest, Connect: Unknown, Head: Unknown, Own: Unknown}
	full.TLS = &TLS{Version: "1.3", Suite: "TLS_AES_128_GCM_SHA256", SNI: "cup.test\"", Resumed: true}
	const prefix = `192.0.2.7 - - [22/Nov/2026:22:06:08 +0100] "GET /game/1?q=a b HTTP/1.1" 200 1234 "http://cup.test/\x22x" "curl/8 (\xC3\xA9)"`
	for _, c := range []struct {
		format Format
		record *Record
		want   string
	}{
		{Combined, full, prefix},
		{Combined, refused, `unix: - - [22/Nov/2026:22:06:08 +0100] "\x16\x03\x01 x\x22" 400 60 "-" "-"`},
		{Combined, &Record{End: full.End, Status: 408}, `unix: - - [22/Nov/2026:22:06:08 +0100] "-" 408 0 "-" "-"`},
		{Cup, full, prefix + ` total=0.001500 connect=0.000090 head=0.001200 own=0.000007 in=5 route="/game/*" ` +
			`backend="127.0.0.1:8081" attempts=2 reason=backend_reset id="0123456789abcdef" ` +
			`tls=1.3 suite=TLS_AES_128_GCM_SHA256 sni="cup.test\x22" resumed=yes slot=3 engine=uring`},
		{Cup, sample(), prefix + ` total=0.001500 connect=- head=0.001200 own=- in=5 route="/game/*" ` +
			`backend="127.0.0.1:8081" attempts=2 reason=- id="0123456789abcdef" tls=- suite=- sni="-" resumed=- slot=3 engine=uring`},
		{JSON, full, `{"time":"2026-11-22T22:06:08.123+01:00","client":"192.0.2.7","method":"GET","target":"/game/1?q=a b",` +
			`"protocol":"HTTP/1.1","status":200,"bytes":1234,"bytes_in":5,"referer":"http://cup.test/\"x","user_agent":"curl/8 (é)",` +
			`"request_id":"0123456789abcdef","route":"/game/*","backend":"127.0.0.1:8081","attempts":2,"reason":"backend_reset",` +
			`"total_seconds":0.001500,"connect_seconds":0.000090,"head_seconds":0.001200,"own_seconds":0.000007,` +
			`"tls":"1.3","suite":"TLS_AES_128_GCM_SHA256","sni":"cup.test\"","resumed":true,"slot":3,"engine":"uring"}`},
		{JSON, refused, `{"time":"2026-11-22T22:06:08.123+01:00","client":"unix:","method":"","target":"\u0016\u0003\u0001 x\"",` +
			`"protocol":"","status":400,"bytes":60,"bytes_in":0,"referer":"","user_agent":"",` +
			`"request_id":"","route":"","backend":"","attempts":0,"reason":"bad_request",` +
			`"total_seconds":0.000000,"connect_seconds":null,"head_seconds":null,"own_seconds":null,` +
			`"tls":"","suite":"","sni":"","resumed":null,"slot":3,"engine":"uring"}`},
	} {
		w := inZone(NewWriter(3, "uring"), c.record)
		require.Equal(t, c.want+"\n", string(w.Append(nil, c.format, c.record)))
	}
}

func TestTimeFollowsTheClock(t *testing.T) {
	w := NewWriter(0, "epoll")
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(1_800_000_000, 5e8), time.Unix(1_800_000_000, 6e8), time.Unix(1_800_000_001, 0)} {
		r := &Record{End: at.UnixNano()}
		require.Contains(t, string(w.Append(nil, Combined, r)), at.Format("[02/Jan/2006:15:04:05 -0700]"))
		var line struct{ Time time.Time }
		require.NoError(t, json.Unmarshal(w.Append(nil, JSON, r), &line))
		require.True(t, at.Equal(line.Time), line.Time)
	}
}

// combinedLine is what readers of combined logs look for.
var combinedLine = regexp.MustCompile(`^(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "([^"]*)" (\d{3}) (\d+) "([^"]*)" "([^"]*)"`)

// unescape undoes appendText.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			var c byte
			fmt.Sscanf(s[i+2:i+4], "%X", &c)
			b.WriteByte(c)
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// hold checks that whatever a peer sends stays where it belongs, in each
// format.
func hold(t *testing.T, target, referer, agent, id []byte) {
	t.Helper()
	r := sample()
	r.TLS = &TLS{Version: "1.2", Suite: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", SNI: string(referer)}
	r.Target, r.Referer, r.UserAgent, r.RequestID = target, referer, agent, id
	w := NewWriter(1023, "uring")
	for _, f := range []Format{Combined, Cup, JSON} {
		line := w.Append(nil, f, r)
		require.LessOrEqual(t, len(line), LineBytesMax)
		require.EqualValues(t, '\n', line[len(line)-1])
		require.True(t, utf8.Valid(line))
		for _, c := range string(line[:len(line)-1]) {
			require.True(t, c >= ' ' && (c < 0x7F || c >= 0xA0 && f == JSON), "%q in %q", c, line)
		}
		if f == JSON {
			var o map[string]any
			require.NoError(t, json.Unmarshal(line, &o), "%s", line)
			require.Len(t, o, 25)
			if want := strings.ToValidUTF8(string(target), ""); want == string(target) && 6*len(target) < TargetMax {
				require.Equal(t, want, o["target"])
			}
			continue
		}
		m := combinedLine.FindSubmatch(line)
		require.NotNil(t, m, "%s", line)
		if 4*len(target) < TargetMax {
			require.Equal(t, "GET "+string(target)+" HTTP/1.1", unescape(string(m[3])))
		}
		if 4*len(agent) < UserAgentMax && len(agent) > 0 {
			require.Equal(t, string(agent), unescape(string(m[7])))
		}
		if f == Cup {
			rest := line[len(m[0]):]
			require.Regexp(t, `^ total=\S+ connect=\S+ head=\S+ own=\S+ in=\d+ route="[^"]*" backend="[^"]*" attempts=\d+ reason=\S+ id="[^"]*" tls=\S+ suite=\S+ sni="[^"]*" resumed=\S+ slot=\d+ engine=\S+\n$`, string(rest))
		}
	}
}

func FuzzPeersBytesStayInTheirField(f *testing.F) {
	f.Add([]byte("/"), []byte("\"\n192.0.2.1 - - [x] \"GET / HTTP/1.1\" 200 1 \"-\" \"-\""), []byte("\x1b[2J\u009b31m\xff"), []byte("\\"))
	f.Add([]byte(strings.Repeat("\xf0\x9f\x98\x80", 900)), []byte(strings.Repeat("\\", 600)), []byte(strings.Repeat("\"", 384)), []byte("a"))
	f.Fuzz(hold)
}

// The worst that fits a record fits a line.
func TestLongestLine(t *testing.T) {
	for _, fill := range []string{"x", "\"", "\x00", "\xff", "\u00e9", "\u009b"} {
		long := []byte(strings.Repeat(fill, 5000))
		hold(t, long, long, long, long)
		r := &Record{
			End: 1<<63 - 1, Client: []byte("fe80:1111:2222:3333:4444:5555:6666:7777%interface0123456"),
			Method: long, Target: long, Protocol: long, Referer: long, UserAgent: long, RequestID: long,
			Status: 999, Bytes: 1<<63 - 1, BytesIn: 1<<63 - 1, Attempts: 1 << 30, Backend: string(long), Route: string(long),
			Reason: message.ReasonBackendUnresolved, Total: 1<<63 - 1, Connect: 1<<63 - 1, Head: 1<<63 - 1, Own: 1<<63 - 1,
			TLS: &TLS{Version: "1.2", Suite: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", SNI: string(long)},
		}
		w := NewWriter(1023, "uring")
		for _, f := range []Format{Combined, Cup, JSON} {
			line := w.Append(nil, f, r)
			require.LessOrEqual(t, len(line), LineBytesMax, "format %d, %q", f, fill)
			require.Contains(t, string(line), cutMark)
		}
	}
}

func TestCutsEndInTheMark(t *testing.T) {
	for _, c := range []struct{ in, text, json string }{
		{"12345678", "12345678", "12345678"},
		{"123456789", "12345...", "12345..."},
		{"\xff\xff", `\xFF\xFF`, `...`},
		{"\xff\xff\xff", `\xFF...`, `...`},
		{"1234\"", `1234\x22`, `1234\"`},
		{"12345\"", `12345...`, `12345\"`},
		{"1234567\"", `12345...`, `12345...`},
		{"123é", `123...`, `123é`},
		{"12345é7", `12345...`, `12345é7`},
		{"123456é8", `12345...`, `12345...`},
	} {
		text, json := appendText(nil, c.in, 8), appendString(nil, c.in, 8)
		require.LessOrEqual(t, len(text), 8)
		require.LessOrEqual(t, len(json), 8)
		require.Equal(t, c.text, string(text), "%q", c.in)
		require.Equal(t, c.json, string(json), "%q", c.in)
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	b, w, r := NewBuffer(), NewWriter(0, "uring"), sample()
	r.TLS = &TLS{Version: "1.3", Suite: "TLS_AES_128_GCM_SHA256", SNI: "cup.test"}
	for _, f := range []Format{Combined, Cup, JSON} {
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			r.End += 1e6
			if !b.Append(w, f, r) {
				t.Fatal("no room")
			}
			if b.HandOver() {
				b.Done(<-b.Full(), pieceBytes)
			}
		}))
	}
}

func BenchmarkAppend(b *testing.B) {
	for f, name := range []string{"combined", "cup", "json"} {
		b.Run(name, func(b *testing.B) {
			w, r := NewWriter(0, "uring"), sample()
			r.Referer = []byte("https://cup.test/matches/today?table=1")
			r.UserAgent = []byte("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
			var dst [LineBytesMax]byte
			b.SetBytes(int64(len(w.Append(dst[:0], Format(f), r))))
			b.ReportAllocs()
			for b.Loop() {
				w.Append(dst[:0], Format(f), r)
			}
		})
	}
}
