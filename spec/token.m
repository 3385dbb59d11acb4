-- The token protocol of Holdfast as a Murphi model (checked with rumur).
--
-- What is modelled: token clients with requests, upgrades, downgrades and voluntary releases; a token server that revokes
-- and grants, with grant sequence numbers named by answers and releases (T2); two ranges of one object that are granted together
-- to a first user and split later (T1); one ordered stream each way per node; dirty data, write-out over the NSD as a step of its own that may
-- be late (I3, S4, F1); leases that end and come back (F2, F3), expulsion in F1's order and return as a new incarnation; the takeover of the token server from what the nodes
-- claim (T8); the kernel's cache as a layer of its own, whose pages are locked while a READ is parked (M2, M4), with the guard (F4).
--
-- What is abstracted: bytes are copies that are Current or Old; a write makes its own copy Current and every other one Old. Sequence
-- numbers count modulo SEQ_MOD, more than can be in flight.
--
-- The constants below are replaced by spec/check.mjs: sizes per configuration, and one mutation at a time. A mutation plants a
-- bug in the protocol; every one must be caught in some configuration.

const
  NODES: 3;
  RANGES: 1;
  EXPULSIONS: 1;
  TAKEOVERS: 0;
  LEASE_ENDS: 1;
  KERNEL: false;
  RELEASES: true; -- clients also release on their own account
  CHANNEL: 3;
  SEQ_MOD: 4;
  -- mutations
  GRANT_BEFORE_ANSWER: false;   -- the server grants as soon as it has sent the revoke
  ANSWER_BEFORE_FLUSH: false;   -- the holder answers while bytes are dirty (breaks I3, T6)
  KEEP_AFTER_REVOKE: false;     -- the holder answers and keeps its copy
  KEEP_WRITING_AFTER_DOWNGRADE: false; -- the holder answers 'shared' and goes on as exclusive
  STALE_ANSWER: false;          -- answers and releases are believed whatever grant they name (T2)
  NO_LEASE_WAIT: false;         -- a node is expelled while its lease runs
  NO_FENCE: false;              -- tokens fall before the NSD refuses the old incarnation (F1)
  LOSE_REVOKE: false;           -- a revoke gets lost on its way
  FILL_WITHOUT_TOKEN: false;    -- read-ahead into a range that has been given up
  FORGET_CO_DEAD: false;        -- a takeover doesn't wait for nodes that can't answer (T8)
  NOTIFY_WAITS_FOR_READS: false; -- the invalidation isn't cut around parked READs (M2)
  NO_KERNEL_DROP: false;        -- a local write leaves the kernel's pages (M1)
  NO_KERNEL_INVALIDATE: false;  -- a revoke leaves the kernel's pages (I2)
  NO_GUARD: false;              -- a node is expelled while its kernel still serves pages (F4)

type
  Node: scalarset(NODES);
  Range: scalarset(RANGES);
  Mode: enum {None, Shared, Exclusive};
  Copy: enum {Nothing, Old, Current};
  Seq: 0 .. SEQ_MOD - 1;
  Kind: enum {Request, Answer, Release, Grant, Revoke};
  Message: record kind: Kind; range: Range; mode: Mode; seq: Seq; end;
  Channel: record count: 0 .. CHANNEL; slots: array [0 .. CHANNEL - 1] of Message; end;

  Held: record
    mode: Mode;          -- what the client believes to hold
    seq: Seq;            -- of the newest grant it got
    asked: Mode;         -- its outstanding request, or None
    revoking: boolean;   -- no new use from now on
    keep: Mode;          -- what the revoke lets it keep
    revokeSeq: Seq;      -- the grant that the revoke means
    copy: Copy;          -- cached bytes
    dirty: boolean;
    writing: Copy;       -- a write-out under way to the NSD, or Nothing
    kernel: Copy;        -- the kernel's page
    parked: boolean;     -- a READ holds that page's lock
  end;
  Granted: record mode: Mode; seq: Seq; asked: Mode; revokeSent: boolean; end;

var
  client: array [Node] of array [Range] of Held;
  server: array [Node] of array [Range] of Granted;
  toServer: array [Node] of Channel;
  toClient: array [Node] of Channel;
  lease: array [Node] of boolean;
  fenced: array [Node] of boolean;
  claimed: array [Node] of boolean;
  disk: array [Range] of Copy;
  expulsions: 0 .. EXPULSIONS;
  takeovers: 0 .. TAKEOVERS;
  leaseEnds: 0 .. LEASE_ENDS;

function next(s: Seq): Seq; begin return (s + 1) % SEQ_MOD; end;
function conflicts(a: Mode; b: Mode): boolean;
begin return (a = Exclusive & b != None) | (b = Exclusive & a != None); end;
function stronger(a: Mode; b: Mode): boolean;
begin return (a = Exclusive & b != Exclusive) | (a = Shared & b = None); end;
function room(c: Channel): boolean; begin return c.count < CHANNEL; end;

procedure send(var c: Channel; kind: Kind; r: Range; mode: Mode; seq: Seq);
begin
  c.slots[c.count].kind := kind;
  c.slots[c.count].range := r;
  c.slots[c.count].mode := mode;
  c.slots[c.count].seq := seq;
  c.count := c.count + 1;
end;
procedure pop(var c: Channel);
begin
  for i: 0 .. CHANNEL - 2 do
    if i + 1 < c.count then c.slots[i] := c.slots[i + 1]; end;
  end;
  clear c.slots[c.count - 1];
  c.count := c.count - 1;
  for i: 0 .. CHANNEL - 1 do if i >= c.count then undefine c.slots[i]; end; end;
end;

procedure resetClient(n: Node);
begin
  for r: Range do
    client[n][r].mode := None; client[n][r].seq := 0; client[n][r].asked := None;
    client[n][r].revoking := false; client[n][r].keep := None; client[n][r].revokeSeq := 0;
    client[n][r].copy := Nothing; client[n][r].dirty := false; client[n][r].writing := Nothing;
    client[n][r].kernel := Nothing; client[n][r].parked := false;
  end;
end;
procedure resetChannel(var c: Channel);
begin
  c.count := 0;
  for i: 0 .. CHANNEL - 1 do undefine c.slots[i]; end;
end;
procedure resetServerFor(n: Node);
begin
  for r: Range do
    server[n][r].mode := None; server[n][r].seq := 0; server[n][r].asked := None; server[n][r].revokeSent := false;
  end;
end;

function mentions(c: Channel; r: Range): boolean;
begin
  for i: 0 .. CHANNEL - 1 do
    if i < c.count then if c.slots[i].range = r then return true; end; end;
  end;
  return false;
end;
-- Sequence numbers matter only against those in flight: with none, they start over, which keeps the state space small.
procedure restartSeq(n: Node; r: Range);
begin
  if !mentions(toServer[n], r) & !mentions(toClient[n], r) & client[n][r].seq = server[n][r].seq &
     (!client[n][r].revoking | client[n][r].revokeSeq = client[n][r].seq) then
    client[n][r].seq := 0; server[n][r].seq := 0; client[n][r].revokeSeq := 0;
  end;
end;

-- Everybody else's copy of the range is Old from now on, wherever it is.
procedure outdate(n: Node; r: Range);
begin
  for m: Node do
    if m != n & client[m][r].copy = Current then client[m][r].copy := Old; end;
    if client[m][r].writing = Current then client[m][r].writing := Old; end;
    if client[m][r].kernel = Current then client[m][r].kernel := Old; end;
  end;
  disk[r] := Old;
end;

startstate
begin
  for n: Node do
    resetClient(n); resetServerFor(n); resetChannel(toServer[n]); resetChannel(toClient[n]);
    lease[n] := true; fenced[n] := false; claimed[n] := true;
  end;
  for r: Range do disk[r] := Current; end;
  expulsions := 0; takeovers := 0; leaseEnds := 0;
end;

ruleset n: Node; r: Range do
  alias h: client[n][r] do

  ruleset m: Mode do
    rule "client asks"
      m != None & lease[n] & !fenced[n] & claimed[n] & h.asked = None & !h.revoking & stronger(m, h.mode) & room(toServer[n])
    ==>
    begin
      h.asked := m;
      send(toServer[n], Request, r, m, h.seq);
    end;
  end;

  rule "client fills its cache"
    lease[n] & (FILL_WITHOUT_TOKEN & h.mode = None | h.mode != None & !h.revoking) & !fenced[n] & h.copy = Nothing
  ==>
  begin h.copy := disk[r]; end;

  -- A write of whole sectors: no fill needed. Pages under write-out are stable (S2). The kernel's pages are dropped before the answer (M1);
  -- a READ that is parked in front of it holds the writer, so it is answered first.
  rule "client writes"
    lease[n] & !fenced[n] & h.mode = Exclusive & (!h.revoking | KEEP_WRITING_AFTER_DOWNGRADE & h.keep = Shared) & h.writing = Nothing & !(KERNEL & h.parked)
  ==>
  begin
    outdate(n, r);
    h.copy := Current;
    h.dirty := true;
    if KERNEL & !NO_KERNEL_DROP then h.kernel := Nothing; end;
  end;

  rule "client starts a write-out"
    h.dirty & h.writing = Nothing & !fenced[n] & h.mode = Exclusive
  ==>
  begin h.writing := h.copy; end;

  -- The NSD executes it whenever it arrives; after the fence it refuses, and fencing waits until what was under way has ended.
  rule "the NSD executes a write"
    h.writing != Nothing
  ==>
  begin
    if !fenced[n] then disk[r] := h.writing; h.dirty := false; end;
    h.writing := Nothing;
  end;

  rule "client releases on its own account"
    RELEASES & lease[n] & !fenced[n] & claimed[n] & h.mode != None & h.asked = None & !h.revoking & !h.dirty & h.writing = Nothing & h.kernel = Nothing & room(toServer[n])
  ==>
  begin
    send(toServer[n], Release, r, None, h.seq);
    h.mode := None; h.copy := Nothing;
  end;

  -- The holder stopped new use; dirty bytes are on the NSD; the kernel's page is gone (a parked READ owns no valid page).
  rule "client answers a revoke"
    h.revoking & !fenced[n] & claimed[n] & lease[n] & room(toServer[n]) &
    (ANSWER_BEFORE_FLUSH | !h.dirty & h.writing = Nothing) &
    (h.keep != None | NO_KERNEL_INVALIDATE | h.kernel = Nothing) &
    !(NOTIFY_WAITS_FOR_READS & h.parked)
  ==>
  begin
    if ANSWER_BEFORE_FLUSH & h.keep = None then h.dirty := false; h.writing := Nothing; end;
    if h.keep = None & !KEEP_AFTER_REVOKE then h.copy := Nothing; end;
    if stronger(h.mode, h.keep) & !(KEEP_WRITING_AFTER_DOWNGRADE & h.keep = Shared) then h.mode := h.keep; end;
    send(toServer[n], Answer, r, h.keep, h.revokeSeq);
    h.revoking := false; h.keep := None; h.revokeSeq := 0;
  end;

  -- The kernel's cache.
  rule "kernel sends a READ"
    KERNEL & h.kernel = Nothing & !h.parked & lease[n] & !fenced[n]
  ==>
  begin h.parked := true; end;

  -- Also under the outgoing token, while the revoke is served: its page is notified again.
  rule "daemon answers a READ"
    KERNEL & h.parked & h.mode != None & h.copy != Nothing & lease[n] & !fenced[n]
  ==>
  begin h.kernel := h.copy; h.parked := false; end;

  rule "daemon notifies the kernel"
    KERNEL & h.revoking & h.keep = None & h.kernel != Nothing & !h.parked & !NO_KERNEL_INVALIDATE
  ==>
  begin h.kernel := Nothing; end;

  rule "guard clears the kernel after the lease"
    KERNEL & !lease[n] & (h.kernel != Nothing | h.parked)
  ==>
  begin h.kernel := Nothing; h.parked := false; end;

  end;
end;

-- Messages arrive, in order on each stream.
ruleset n: Node do
  rule "client receives"
    toClient[n].count > 0 & !fenced[n] & (toClient[n].slots[0].kind = Grant | room(toServer[n]))
  ==>
  var m: Message;
  begin
    m := toClient[n].slots[0];
    pop(toClient[n]);
    alias h: client[n][m.range] do
      if m.kind = Grant then
        if stronger(m.mode, h.mode) then h.mode := m.mode; end;
        h.seq := m.seq;
        if !stronger(h.asked, h.mode) then h.asked := None; end;
      else
        if h.mode = None | !stronger(h.mode, m.mode) then
          -- Not known (any more): still answered, naming the grant it was about.
          send(toServer[n], Answer, m.range, m.mode, m.seq);
        else
          h.revoking := true; h.keep := m.mode; h.revokeSeq := m.seq;
        end;
      end;
    end;
    restartSeq(n, m.range);
  end;

  rule "server receives"
    toServer[n].count > 0
  ==>
  var m: Message;
  begin
    m := toServer[n].slots[0];
    pop(toServer[n]);
    if !fenced[n] then
      alias g: server[n][m.range] do
        switch m.kind
          case Request: g.asked := m.mode;
          case Answer:
            if m.seq = g.seq | STALE_ANSWER then
              if stronger(g.mode, m.mode) then g.mode := m.mode; end;
              g.revokeSent := false;
            end;
          case Release:
            if m.seq = g.seq | STALE_ANSWER then g.mode := None; g.revokeSent := false; end;
          else error "a message that no client sends";
        end;
      end;
    end;
    restartSeq(n, m.range);
  end;
end;

-- The server grants nothing before every node that is not fenced has claimed what it holds (T8).
function complete(): boolean;
begin
  for n: Node do
    if !claimed[n] & !fenced[n] & !(FORGET_CO_DEAD & !lease[n]) then return false; end;
  end;
  return true;
end;

ruleset n: Node; r: Range do
  alias q: server[n][r] do

  ruleset m: Node do
    rule "server revokes"
      complete() & q.asked != None & m != n & conflicts(q.asked, server[m][r].mode) & !server[m][r].revokeSent & !fenced[m] & room(toClient[m])
    ==>
    begin
      server[m][r].revokeSent := true;
      if !LOSE_REVOKE then
        if q.asked = Shared then send(toClient[m], Revoke, r, Shared, server[m][r].seq);
        else send(toClient[m], Revoke, r, None, server[m][r].seq); end;
      end;
    end;
  end;

  rule "server grants"
    complete() & q.asked != None & !fenced[n] & room(toClient[n]) &
    (forall m: Node do m = n | !conflicts(q.asked, server[m][r].mode) | (GRANT_BEFORE_ANSWER & server[m][r].revokeSent) end)
  ==>
  begin
    -- The first user of all ranges gets them all (desired range), if nobody holds or asks.
    for s: Range do
      if s != r & server[n][s].mode = None & server[n][s].asked = None & toClient[n].count + 1 < CHANNEL &
         (forall m: Node do m = n | (server[m][s].mode = None & server[m][s].asked = None) end) then
        server[n][s].mode := q.asked;
        server[n][s].seq := next(server[n][s].seq);
        send(toClient[n], Grant, s, q.asked, server[n][s].seq);
      end;
    end;
    if stronger(q.asked, q.mode) then q.mode := q.asked; end;
    q.seq := next(q.seq);
    q.asked := None;
    q.revokeSent := false;
    send(toClient[n], Grant, r, q.mode, q.seq);
  end;

  end;
end;

-- Failures.
ruleset n: Node do
  rule "the lease runs out"
    lease[n] & !fenced[n] & leaseEnds < LEASE_ENDS
  ==>
  begin lease[n] := false; leaseEnds := leaseEnds + 1; end;

  rule "the lease comes back, nobody expelled the node"
    !lease[n] & !fenced[n] & (!KERNEL | forall r: Range do client[n][r].kernel = Nothing end)
  ==>
  begin lease[n] := true; end;

  -- F1: the lease is out (or the guard has proved the death), the NSD refuses and has drained, only then do the tokens fall.
  rule "the node is expelled"
    expulsions < EXPULSIONS & !fenced[n] & (!lease[n] | NO_LEASE_WAIT) &
    (NO_GUARD | (forall r: Range do client[n][r].kernel = Nothing & !client[n][r].parked end)) &
    (NO_FENCE | (forall r: Range do client[n][r].writing = Nothing end))
  ==>
  begin
    expulsions := expulsions + 1;
    if !NO_FENCE then fenced[n] := true; end;
    resetServerFor(n); resetChannel(toServer[n]); resetChannel(toClient[n]);
    claimed[n] := true;
    -- What it had not written is lost, and listed (F3): the disk's bytes are the current ones again.
    for r: Range do
      if client[n][r].copy = Current & client[n][r].dirty then
        disk[r] := Current;
        client[n][r].copy := Old;
        if client[n][r].writing = Current then client[n][r].writing := Old; end;
        if client[n][r].kernel = Current then client[n][r].kernel := Old; end;
      end;
    end;
  end;

  rule "it returns as a new incarnation"
    fenced[n]
  ==>
  begin resetClient(n); fenced[n] := false; lease[n] := true; end;

  rule "a client claims what it holds"
    !claimed[n] & lease[n] & !fenced[n]
  ==>
  begin
    for r: Range do
      server[n][r].mode := client[n][r].mode;
      server[n][r].seq := client[n][r].seq;
      client[n][r].asked := None;
      client[n][r].revokeSeq := client[n][r].seq;
    end;
    claimed[n] := true;
  end;
end;

rule "the token server dies, another takes over"
  takeovers < TAKEOVERS
==>
begin
  takeovers := takeovers + 1;
  for n: Node do
    resetServerFor(n); resetChannel(toServer[n]); resetChannel(toClient[n]);
    claimed[n] := fenced[n];
  end;
end;

-- Properties.
invariant "I1: many shared holders or one exclusive, over all nodes not fenced"
  forall r: Range do forall a: Node do forall b: Node do
    a = b | fenced[a] | fenced[b] | !lease[a] | !lease[b] | client[a][r].revoking & ANSWER_BEFORE_FLUSH | !conflicts(client[a][r].mode, client[b][r].mode)
  end end end;

invariant "I2: bytes in use under a token and a lease are the current ones"
  forall r: Range do forall n: Node do
    !lease[n] | client[n][r].mode = None | client[n][r].copy != Old
  end end;

invariant "I2: the kernel serves current bytes only, whatever happened to its daemon"
  forall r: Range do forall n: Node do client[n][r].kernel != Old end end;

invariant "I3: no token is given up while its bytes are dirty"
  forall r: Range do forall n: Node do
    fenced[n] | !lease[n] | !client[n][r].dirty | client[n][r].mode = Exclusive
  end end;

invariant "I10: the current bytes exist somewhere: on the NSD, or dirty at one node"
  forall r: Range do
    disk[r] = Current | exists n: Node do client[n][r].copy = Current & client[n][r].dirty & !fenced[n] end
  end;

-- I12: whatever was asked can still end.
liveness "I12: every request ends"
  forall n: Node do forall r: Range do client[n][r].asked = None & server[n][r].asked = None & !client[n][r].revoking end end;
