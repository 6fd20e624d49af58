package proxy

import "time"

// told is when the log was told of something last; 0 is never.
type told int64

// toldEvery is how often the log is told of the same, whoever causes it.
const toldEvery = int64(time.Minute)

// due reports whether the log may be told again, and notes that it is.
func (t *told) due(now int64) bool {
	if *t != 0 && now-int64(*t) < toldEvery {
		return false
	}
	*t = told(now)
	return true
}

// wordsMax is how many bytes of a peer's words the log gets.
const wordsMax = 512

// words are the begin of a text that a peer may have made long.
func words(text string) string {
	if len(text) <= wordsMax {
		return text
	}
	return text[:wordsMax] + "..."
}

// tell has the log tell why TLS with b failed, now and then.
func (b *backend) tell(err error) {
	if b.told.due(b.p.now) {
		b.p.log.Warn("TLS with a backend failed", "backend", b.name, "err", words(err.Error()))
	}
}

// tell has the log tell why TLS with c failed, now and then. name is the one that
// it asked for.
func (c *client) tell(name string, err error) {
	if !c.listener.told.due(c.p.now) {
		return
	}
	from := "unix:"
	if addr := c.peer(); addr.IsValid() {
		from = addr.String()
	}
	c.p.log.Info("TLS with a client failed", "listener", c.listener.root, "client", from, "sni", words(name), "err", words(err.Error()))
}
