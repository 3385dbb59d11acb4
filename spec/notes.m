-- Several nodes write one file: concurrent-write status tokens and their notes, as a Murphi model (checked with rumur).
--
-- What is modelled: the status token of one inode, with requests, revocations, and answers that carry notes; the token server, which gathers notes and hands
-- them out with exclusive grants; what a node knows of the size: as a lower bound beside others, exactly when it is shared or exclusive; growth,
-- truncation, the inode's sector on the disk; the death of a node at any moment, its log redone or not; the takeover of the token server from what nodes claim.
-- That tokens themselves are kept (streams, leases, fences, data) is token.m's.
--
-- What is abstracted: versions of the sector are one bit in each note, "on the present version": a write of the sector takes it from all notes
-- that there are anywhere. Of times nothing is said: they travel as the size does.
--
-- `truth` is what a stat must show: the greatest size written since the last truncation, except what only the dead knew. `own` and `heard` are where that
-- stands while it is not on the disk: with nodes that live, and with a token server that has lived on since. spec/check.mjs replaces the constants.

const
  NODES: 2;
  SIZES: 2;
  EXPULSIONS: 1;
  TAKEOVERS: 1;
  CHANNEL: 2;
  SEQ_MOD: 3;
  TRUNCATES: true;
  -- mutations
  ANSWER_WITHOUT_NOTE: false;     -- who gives concurrent-write up doesn't say what it has come to
  NOTE_AFTER_ANSWER: false;       -- or says it behind the answer
  ANSWER_BEFORE_FLUSH: false;     -- or says it of bytes that are not on the NSDs
  SHARED_WHILE_NOTED: false;      -- the server grants shared though there is a note
  NOTE_FORGOTTEN_AT_GRANT: false; -- the server forgets the note when it has handed it out
  NOTE_KEPT_FROM_RAISED: false;   -- who comes from concurrent-write to exclusive isn't told the others' notes
  OWN_NOT_TAKEN_IN: false;        -- nor takes in what it has written itself
  UNTAKEN_FORGOTTEN: false;       -- notes that came with a grant and nobody had a use for are not said again
  WRITTEN_BEFORE_TAKEN_IN: false; -- the inode gets to the disk, or the log, without the note that came with the grant
  TOLD_FORGOTTEN: false;          -- a new token server isn't told again (T8)
  VERSION_IGNORED: false;         -- a note of an older version of the sector counts
  DOWNGRADE_BEFORE_WRITE: false;  -- exclusive becomes concurrent-write with the inode not in place

type
  Node: scalarset(NODES);
  Size: 0 .. SIZES;
  Mode: enum {None, Shared, Concurrent, Exclusive};
  Seq: 0 .. SEQ_MOD - 1;
  Note: record there: boolean; fresh: boolean; size: Size; end;
  Kind: enum {Request, Answer, Told, Grant, Revoke};
  Message: record kind: Kind; mode: Mode; seq: Seq; gives: boolean; note: Note; end;
  Channel: record count: 0 .. CHANNEL; slots: array [0 .. CHANNEL - 1] of Message; end;

  Held: record
    mode: Mode;
    seq: Seq;            -- of the newest grant
    asked: Mode;
    revoking: boolean;
    keep: Mode;
    revokeSeq: Seq;
    valid: boolean;      -- the inode is in memory
    size: Size;
    changed: boolean;    -- beside others: a note is due
    unflushed: boolean;  -- bytes that only this node has
    dirty: boolean;      -- exclusively: to be written in place
    untaken: Note;       -- came with a grant, and the inode is not in memory
    told: Note;          -- until status is granted shared or exclusively
  end;
  Granted: record mode: Mode; seq: Seq; asked: Mode; revokeSent: boolean; justTold: boolean; end;

var
  client: array [Node] of Held;
  server: array [Node] of Granted;
  note: Note;
  toServer: array [Node] of Channel;
  toClient: array [Node] of Channel;
  dead: array [Node] of boolean;
  claimed: array [Node] of boolean;
  disk: Size;
  truth: Size;
  own: array [Node] of Size;
  heard: Size;
  expulsions: 0 .. EXPULSIONS;
  takeovers: 0 .. TAKEOVERS;

function next(s: Seq): Seq; begin return (s + 1) % SEQ_MOD; end;
function max(a: Size; b: Size): Size; begin if a > b then return a; end; return b; end;
function conflicts(a: Mode; b: Mode): boolean;
begin return a != None & b != None & !(a = b & a != Exclusive); end;
function covers(a: Mode; b: Mode): boolean;
begin return b = None | a = b | a = Exclusive; end;
function meet(a: Mode; b: Mode): Mode;
begin
  if covers(a, b) then return b; end;
  if covers(b, a) then return a; end;
  return None;
end;
function room(c: Channel): boolean; begin return c.count < CHANNEL; end;

procedure noNote(var a: Note); begin a.there := false; a.fresh := false; a.size := 0; end;
procedure join(var a: Note; b: Note);
begin
  if b.there then
    if !a.there | b.fresh & !a.fresh then a := b;
    elsif a.fresh = b.fresh then a.size := max(a.size, b.size); end;
  end;
end;
procedure stale(var a: Note);
begin
  if a.there then a.fresh := false; if !VERSION_IGNORED then a.size := 0; end; end;
end;

procedure send(var c: Channel; kind: Kind; mode: Mode; seq: Seq; gives: boolean; n: Note);
begin
  c.slots[c.count].kind := kind;
  c.slots[c.count].mode := mode;
  c.slots[c.count].seq := seq;
  c.slots[c.count].gives := gives;
  c.slots[c.count].note := n;
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
procedure resetChannel(var c: Channel);
begin
  c.count := 0;
  for i: 0 .. CHANNEL - 1 do undefine c.slots[i]; end;
end;
procedure resetClient(n: Node);
begin
  alias h: client[n] do
    h.mode := None; h.seq := 0; h.asked := None; h.revoking := false; h.keep := None; h.revokeSeq := 0;
    h.valid := false; h.size := 0; h.changed := false; h.unflushed := false; h.dirty := false;
    noNote(h.untaken); noNote(h.told);
  end;
end;
procedure resetServerFor(n: Node);
begin
  server[n].mode := None; server[n].seq := 0; server[n].asked := None; server[n].revokeSent := false; server[n].justTold := false;
end;
-- Sequence numbers matter only against those in flight.
procedure restartSeq(n: Node);
begin
  if toServer[n].count = 0 & toClient[n].count = 0 & client[n].seq = server[n].seq &
     (!client[n].revoking | client[n].revokeSeq = client[n].seq) then
    client[n].seq := 0; server[n].seq := 0; client[n].revokeSeq := 0;
  end;
end;

-- The sector is written: every note that there is was made on the version before.
procedure written(size: Size);
begin
  disk := size;
  stale(note);
  heard := 0;
  for n: Node do
    own[n] := 0;
    stale(client[n].untaken); stale(client[n].told);
    for i: 0 .. CHANNEL - 1 do
      if i < toServer[n].count then stale(toServer[n].slots[i].note); end;
      if i < toClient[n].count then stale(toClient[n].slots[i].note); end;
    end;
  end;
end;

procedure takeIn(n: Node; what: Note);
begin
  if what.there & (what.fresh | VERSION_IGNORED) then
    client[n].size := max(client[n].size, what.size);
    client[n].dirty := true;
  end;
end;

-- What has to be known after a death. Whoever is alone with the inode, and knows it, knows all.
procedure survive();
begin
  if !exists n: Node do !dead[n] & client[n].mode = Exclusive & client[n].valid & !client[n].untaken.there & !client[n].changed end then
    truth := max(disk, heard);
    for n: Node do if !dead[n] then truth := max(truth, own[n]); end; end;
  end;
end;

startstate
begin
  for n: Node do
    resetClient(n); resetServerFor(n); resetChannel(toServer[n]); resetChannel(toClient[n]);
    dead[n] := false; claimed[n] := true; own[n] := 0;
  end;
  noNote(note);
  disk := 0; truth := 0; heard := 0;
  expulsions := 0; takeovers := 0;
end;

ruleset n: Node do
  alias h: client[n] do

  ruleset m: Mode do
    rule "client asks"
      m != None & !dead[n] & claimed[n] & h.asked = None & !h.revoking & !covers(h.mode, m) & room(toServer[n])
    ==>
    var none: Note;
    begin
      noNote(none);
      h.asked := m;
      send(toServer[n], Request, m, h.seq, false, none);
    end;
  end;

  -- With something of the token held, being revoked or not: nobody writes the sector meanwhile.
  rule "client reads the inode"
    !dead[n] & h.mode != None & !h.valid
  ==>
  begin
    h.valid := true; h.size := disk;
    if h.mode = Exclusive & h.untaken.there then
      takeIn(n, h.untaken);
      noNote(h.untaken);
    end;
  end;

  ruleset s: Size do
    rule "client writes beyond what it knows"
      !dead[n] & h.valid & !h.revoking & (h.mode = Concurrent | h.mode = Exclusive & !h.untaken.there) & s > h.size
    ==>
    begin
      h.size := s;
      h.unflushed := true;
      if h.mode = Concurrent then
        h.changed := true;
        own[n] := max(own[n], s);
        truth := max(truth, s);
      else
        h.dirty := true;
        truth := s;
      end;
    end;

    rule "client truncates"
      TRUNCATES & !dead[n] & h.valid & !h.revoking & h.mode = Exclusive & !h.untaken.there & s < h.size
    ==>
    begin h.size := s; h.dirty := true; truth := s; end;
  end;

  rule "client flushes"
    !dead[n] & h.unflushed
  ==>
  begin h.unflushed := false; end;

  rule "client writes the inode in place"
    !dead[n] & h.valid & h.mode = Exclusive & h.dirty & !h.unflushed & (!h.untaken.there | WRITTEN_BEFORE_TAKEN_IN)
  ==>
  begin
    written(h.size);
    h.dirty := false;
  end;

  -- `keep` of a node that doesn't write there itself becomes None (RevokeHandler.writesConcurrently).
  ruleset shares: boolean do
    rule "client answers a revoke"
      h.revoking & !dead[n] & claimed[n] & toServer[n].count + (NOTE_AFTER_ANSWER ? 2 : 1) <= CHANNEL &
      (shares | h.keep = Concurrent) &
      (ANSWER_BEFORE_FLUSH | !h.unflushed) &
      (!h.dirty | DOWNGRADE_BEFORE_WRITE & h.keep = Concurrent) &
      (h.keep = None | !shares | !h.untaken.there)
    ==>
    var keep: Mode; gives: boolean; said: Note; none: Note;
    begin
      keep := shares ? h.keep : None;
      gives := h.seq = h.revokeSeq;
      noNote(said);
      if h.changed & (keep = None | !covers(keep, h.mode)) then
        if !ANSWER_WITHOUT_NOTE then said.there := true; said.fresh := true; said.size := h.size; end;
        h.changed := false;
        -- A newer grant has come meanwhile, and this note was not with it.
        if h.mode = Exclusive & !gives then join(h.untaken, said); end;
      end;
      if keep = None & h.untaken.there & !UNTAKEN_FORGOTTEN then join(said, h.untaken); end;
      if gives then
        h.mode := meet(h.mode, keep);
        noNote(h.untaken);
        if h.mode = Concurrent then h.dirty := false; end;
      end;
      if h.mode = None | keep = None then h.valid := false; h.size := 0; end;
      if !TOLD_FORGOTTEN then join(h.told, said); end;
      if NOTE_AFTER_ANSWER then
        noNote(none);
        send(toServer[n], Answer, keep, h.seq, gives, none);
        send(toServer[n], Told, None, h.seq, false, said);
      else
        send(toServer[n], Answer, keep, h.seq, gives, said);
      end;
      h.revoking := false; h.keep := None; h.revokeSeq := 0;
      restartSeq(n);
    end;
  end;

  -- A grant that crossed a revocation brought more than was seen at the time.
  rule "client settles"
    !dead[n] & h.valid & h.mode = Exclusive & h.changed & !h.revoking
  ==>
  begin h.changed := false; h.dirty := true; end;

  rule "client takes in late"
    WRITTEN_BEFORE_TAKEN_IN & !dead[n] & h.valid & h.mode = Exclusive & h.untaken.there & !h.dirty & !h.revoking
  ==>
  begin takeIn(n, h.untaken); noNote(h.untaken); end;

  end;
end;

ruleset n: Node do
  rule "client receives"
    toClient[n].count > 0 & !dead[n] & (toClient[n].slots[0].kind = Grant | room(toServer[n]))
  ==>
  var m: Message; due: Note; none: Note;
  begin
    noNote(none);
    m := toClient[n].slots[0];
    pop(toClient[n]);
    alias h: client[n] do
      if m.kind = Grant then
        noNote(due);
        if m.mode = Exclusive & h.mode != Exclusive then
          due := m.note;
          if due.there & due.fresh then own[n] := max(own[n], due.size); end;
          join(due, h.told);
        end;
        if m.mode != Concurrent then noNote(h.told); end;
        if !covers(h.mode, m.mode) then h.mode := m.mode; end;
        h.seq := m.seq;
        if covers(h.mode, h.asked) then h.asked := None; end;
        if h.mode = Exclusive then
          if h.valid & !h.revoking & WRITTEN_BEFORE_TAKEN_IN then
            if h.changed then h.changed := false; h.dirty := true; end;
            join(h.untaken, due);
          elsif h.valid & !h.revoking then
            if h.changed then h.changed := false; if !OWN_NOT_TAKEN_IN then h.dirty := true; else h.size := disk; end; end;
            if !NOTE_KEPT_FROM_RAISED then takeIn(n, due); end;
          else
            join(h.untaken, due);
          end;
        end;
      else
        if covers(m.mode, h.mode) then
          send(toServer[n], Answer, m.mode, h.seq, true, none);
        else
          -- One of an older server's may still be being served.
          h.keep := h.revoking ? meet(h.keep, m.mode) : m.mode;
          h.revoking := true; h.revokeSeq := h.seq;
        end;
      end;
    end;
    restartSeq(n);
  end;

  rule "server receives"
    toServer[n].count > 0
  ==>
  var m: Message;
  begin
    m := toServer[n].slots[0];
    pop(toServer[n]);
    alias g: server[n] do
      if m.note.there then
        join(note, m.note);
        g.justTold := true;
        if m.note.fresh then heard := max(heard, m.note.size); end;
      end;
      switch m.kind
        case Request: g.asked := m.mode;
        case Answer:
          g.revokeSent := false;
          if m.gives & m.seq = g.seq then
            -- Who gives exclusive status up has the notes in the inode, but for those that it told just before.
            if g.justTold then g.justTold := false;
            elsif g.mode = Exclusive & m.mode != Exclusive then noNote(note); end;
            g.mode := meet(g.mode, m.mode);
          end;
        case Told: g.justTold := false;
        else error "a message that no client sends";
      end;
    end;
    restartSeq(n);
  end;
end;

-- Nothing is granted before everybody who lives has claimed (T8).
function complete(): boolean;
begin return forall n: Node do claimed[n] | dead[n] end; end;

function wanted(n: Node): Mode;
begin
  alias q: server[n] do
    if q.asked = None | q.asked = Exclusive | q.mode = Exclusive then return q.asked; end;
    if conflicts(q.asked, q.mode) then return Exclusive; end;
    if q.asked = Shared & note.there & !SHARED_WHILE_NOTED then return Exclusive; end;
    return q.asked;
  end;
end;

ruleset n: Node do
  ruleset m: Node do
    rule "server revokes"
      complete() & m != n & conflicts(wanted(n), server[m].mode) & !server[m].revokeSent & !dead[m] & room(toClient[m])
    ==>
    var none: Note; keep: Mode;
    begin
      noNote(none);
      keep := None;
      if server[m].mode = Exclusive & wanted(n) != Exclusive then keep := wanted(n); end;
      server[m].revokeSent := true;
      send(toClient[m], Revoke, keep, server[m].seq, false, none);
    end;
  end;

  rule "server grants"
    complete() & server[n].asked != None & !dead[n] & room(toClient[n]) &
    forall m: Node do m = n | !conflicts(wanted(n), server[m].mode) end
  ==>
  var mode: Mode; told: Note;
  begin
    mode := wanted(n);
    if mode = Concurrent & forall m: Node do m = n | server[m].mode = None & server[m].asked = None end then mode := Exclusive; end;
    noNote(told);
    if mode = Exclusive then told := note; if NOTE_FORGOTTEN_AT_GRANT then noNote(note); end; end;
    if !covers(server[n].mode, mode) then server[n].mode := mode; end;
    server[n].seq := next(server[n].seq);
    server[n].asked := None;
    send(toClient[n], Grant, mode, server[n].seq, false, told);
  end;
end;

-- Failures.
ruleset n: Node do
  -- Fenced, its log redone: what was in the log is in place, the rest is gone.
  ruleset logged: boolean do
    rule "a node dies and falls"
      expulsions < EXPULSIONS & !dead[n] &
      (!logged | client[n].mode = Exclusive & client[n].valid & client[n].dirty & !client[n].unflushed & (!client[n].untaken.there | WRITTEN_BEFORE_TAKEN_IN))
    ==>
    begin
      expulsions := expulsions + 1;
      if logged then written(client[n].size); end;
      dead[n] := true; claimed[n] := true;
      own[n] := 0;
      resetServerFor(n); resetClient(n); resetChannel(toServer[n]); resetChannel(toClient[n]);
      survive();
    end;
  end;

  rule "it returns as a new incarnation"
    dead[n]
  ==>
  begin dead[n] := false; end;

  rule "a client claims what it holds"
    !claimed[n] & !dead[n]
  ==>
  begin
    server[n].mode := client[n].mode;
    server[n].seq := client[n].seq;
    client[n].asked := None;
    client[n].revokeSeq := client[n].seq;
    if client[n].told.there then
      join(note, client[n].told);
      server[n].justTold := true;
      if client[n].told.fresh then heard := max(heard, client[n].told.size); end;
    end;
    claimed[n] := true;
  end;
end;

rule "the token server dies, another takes over"
  takeovers < TAKEOVERS
==>
begin
  takeovers := takeovers + 1;
  noNote(note);
  heard := 0;
  for n: Node do
    resetServerFor(n); resetChannel(toServer[n]); resetChannel(toClient[n]);
    claimed[n] := dead[n];
  end;
  survive();
end;

-- Properties.
invariant "I1: shared beside shared, concurrent-write beside concurrent-write, or one exclusively"
  forall a: Node do forall b: Node do a = b | !conflicts(client[a].mode, client[b].mode) end end;

invariant "I13: whoever has the inode shared or exclusively knows its size"
  forall n: Node do
    client[n].revoking | !client[n].valid | client[n].untaken.there | client[n].changed |
    !(client[n].mode = Shared | client[n].mode = Exclusive) | client[n].size = truth
  end;

invariant "beside others a node knows the size as a lower bound"
  forall n: Node do client[n].mode != Concurrent | !client[n].valid | client[n].size <= truth end;

invariant "I3: what a note tells of, and what a token that was given up covered, is on the NSDs"
  forall n: Node do !client[n].unflushed | client[n].mode = Exclusive | client[n].mode = Concurrent end;

invariant "beside others nobody changes the inode"
  forall n: Node do !client[n].dirty | client[n].mode = Exclusive end;

-- I12
liveness "I12: every request ends"
  forall n: Node do client[n].asked = None & server[n].asked = None & !client[n].revoking end;
