package integration

func idleClients() error      { return nil }
func refuseAndExecute() error { return nil }
