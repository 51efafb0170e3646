import Foundation
import Trace
import VMCore

/// Moves through a trace, forwards and backwards: the state at any exit is a `seek` away.
///
/// A seek restores the nearest state before its target, from memory or from a checkpoint of the trace, and replays the
/// rest. One machine serves all seeks: restoring copies only the pages that differ. A timeline belongs to the thread
/// that makes it; `stop` is for any thread.
///
/// A difference between replay and recording is thrown as `Divergence`. The timeline then stands where it happened,
/// with `position` the last exit before it; the next movement starts again from a state that is good.
public final class Timeline {
    public let reader: TraceReader
    public let description: TraceDescription
    /// Nil when the recording was killed.
    public let ending: TraceEnding?
    /// The exits that can be sought.
    public let first: ExitNumber
    public var last: ExitNumber { reader.lastExit }
    /// Where the timeline stands.
    public internal(set) var position: Position
    /// Whether it stands where the recording ended, with all that entered after the last exit.
    public internal(set) var isAtEnd = false
    /// The devices here; nil where they aren't run beside the replay, or the checkpoint was taken without them. May be
    /// replaced by others, to see whether they answer alike.
    public var platform: Platform? {
        get { environment.devices?.mark.platform }
        set { environment.devices = newValue.map { DeviceReplay(platform: $0, engine: engine) } }
    }
    /// Where the devices first answered otherwise than in the recording, on the way here.
    public var deviceMismatch: DeviceMismatch? { environment.devices?.mismatch }
    private let withDevices: Bool
    /// Called with each exit that is replayed, after it was answered.
    public var observe: ((Exit) -> Void)? {
        get { environment.observe }
        set { environment.observe = newValue }
    }
    /// Told how much of a movement is done, 0 to 1, a few times a second.
    public var progress: ((Double) -> Void)?

    /// How much work the movements were.
    public struct Statistics: Sendable {
        /// Movements that began with a restored state.
        public var replays = 0
        public var exits: UInt64 = 0
        /// States restored from memory, and from checkpoints.
        public var restores = 0
        public var checkpointsLoaded = 0
        public var pagesCopied = 0
        public var instructions: UInt64 = 0
    }
    public internal(set) var statistics = Statistics()
    public var landing: LandingStatistics { machine.landing }

    let engine: any Engine
    let machine: Machine
    let environment: ReplayEnvironment
    private let stopFlag: SharedFlag
    private let kicker: Kicker
    /// Those that can be restored, ascending by exit.
    let checkpoints: [CheckpointInfo]

    private let writes: WriteLog.Follower
    /// What memory held when it was last looked at; pages in `dirty` and those written since may differ. Nil where a
    /// failure has left it unknown.
    private var image: MemoryImage?
    private var dirty: Set<Int> = []
    private var images: CheckpointImages
    private let slots: SlotReader
    private var contents = SlotContents()
    private let pages = PageCount()
    private var saved: SavedStates

    /// Whether the machine is in the state of `position`, so that it can go on.
    var isSound = false
    /// Exits that take some milliseconds to replay.
    private var pace: UInt64 = 256
    private var lastSave = Nanoseconds(0)

    /// A stretch without exits takes at most so many times as long as it took to record: in another engine than the one
    /// that recorded it, longer. KVM on hardware is some 30 times faster than the soft engine, and that some 60 times
    /// faster than a KVM that emulates.
    private static let slowestReplay: UInt64 = 10
    private static let slowestOtherEngine: UInt64 = 200
    /// Replay time between waypoints. Saving one takes 0.2 ms and the copies of what was written, so it costs 1 %, and
    /// a later seek into the stretch takes no longer than this.
    private static let waypointInterval = Nanoseconds.milliseconds(20)
    /// 2 MiB: pages are read in the order of their extents, and those that come again are in `contents`.
    private static let cachedExtents = 32

    /// Opens a timeline at the start of the trace. `withDevices` runs them beside the replay.
    ///
    /// - Throws: `TraceError` where the trace can't be replayed, `HostError` where this host can't replay it.
    public convenience init(reader: TraceReader, host: EngineHost, withDevices: Bool = false) throws {
        try self.init(unopened: reader, host: host, withDevices: withDevices)
        try seek(to: first)
    }

    /// A timeline that stands nowhere until it is moved: damage at the start of a trace doesn't hinder it.
    init(unopened reader: TraceReader, host: EngineHost, withDevices: Bool = false) throws {
        self.reader = reader
        self.withDevices = withDevices
        description = try reader.description()
        ending = try reader.meta(TraceEnding.key, as: TraceEnding.self)
        try description.cpuModel.check(against: host.supportedFeatures(), timestamps: description.timestamps)
        checkpoints = Self.restorable(reader.checkpoints)
        guard let start = checkpoints.first else {
            throw TraceError.corrupt(what: "the state at its start is missing", place: "checkpoint")
        }
        first = start.exit
        position = Position(exit: start.exit)
        let memory = try GuestMemory(map: description.memory)
        let trapped = description.sites.trapped(by: description.timestamps)
        engine = try Self.makeEngine(host, memory, description.cpuModel, trapping: trapped)
        kicker = engine.kicker
        stopFlag = SharedFlag()
        environment = ReplayEnvironment(cursor: reader.cursor(), stopFlag: stopFlag)
        environment.canReadTimestamps = host.kind == .soft || trapped.contains(.timestamps)
        let slowness = engine.name == description.engine ? Self.slowestReplay : Self.slowestOtherEngine
        environment.patience = .seconds(5)
            + Nanoseconds(min((ending?.wall ?? .seconds(1)).rawValue, 3_600_000_000_000) * slowness)
        environment.longestElapsed = min(ending?.wall ?? .seconds(3600), .seconds(3600))
        machine = Machine(engine: engine, environment: environment, exit: start.exit)
        writes = try machine.writes.get().follow()
        image = MemoryImage(pages: memory.filePages)
        images = CheckpointImages(reader: reader, memory: memory)
        slots = SlotReader(reader, extents: Self.cachedExtents)
        saved = SavedStates(exits: reader.lastExit.rawValue - start.exit.rawValue, pages: pages)
    }

    /// The checkpoints at exits, ascending by exit.
    static func restorable(_ checkpoints: [CheckpointInfo]) -> [CheckpointInfo] {
        checkpoints.filter { $0.position == nil }.sorted { ($0.exit, $0.id) < ($1.exit, $1.id) }
    }

    private static func makeEngine(_ host: EngineHost, _ memory: GuestMemory, _ model: CPUModel,
                                   trapping trapped: TrappedInstructions)
        throws -> any Engine {
        do {
            return try host.makeEngine(memory: memory, model: model, trapping: trapped)
        } catch {
            guard case .call(let call) = error, call.call == "KVM_SET_CPUID2", call.errno == EINVAL else { throw error }
            throw TraceError.corrupt(what: "KVM refuses its CPU model", place: "description")
        }
    }

    // MARK: What is there

    /// The complete processor state here.
    public func state() throws -> CPUState { try engine.state() }
    /// The guest's memory here. It may be read, not written.
    public var memory: GuestMemory { engine.memory }
    /// The digests of the state here. The first time they read all memory, later what was written since.
    public func digests() throws -> MachineDigests {
        let (follower, table) = try digestTable.get()
        try follower.take { table.update(page: $0, content: memory.page($0)) }
        return MachineDigests(state: try engine.state().digest, memory: table.masked, memoryStrict: table.strict)
    }
    private lazy var digestTable = Result {
        (follower: try machine.writes.get().follow(), table: MemoryDigestTable(memory: memory))
    }
    /// The engine's capabilities on this host.
    public var capabilities: EngineCapabilities { engine.capabilities }

    // MARK: Movement

    /// Moves to the state right after an exit, settled, before anything else enters.
    ///
    /// - Throws: `ReplayError.noSuchExit`, `Divergence`, `Stopped`, `TraceError`, `HostError`.
    public func seek(to exit: ExitNumber) throws { try seek(to: Position(exit: exit)) }

    /// Moves to the state in which the recording ended: the last exit, all that entered after it, and where it ended
    /// between two exits, the way there.
    public func seekToEnd() throws {
        if isSound, isAtEnd { return }
        try seek(to: last)
        try run(to: nil)
    }

    /// Moves to the next exit.
    public func step() throws { try seek(to: position.exit.next) }

    /// Moves to the latest exit before this position.
    public func reverseStep() throws {
        let isBetween = position.instructions > 0 || isAtEnd
        try seek(to: isBetween ? position.exit : ExitNumber(position.exit.rawValue &- 1))
    }

    /// Moves forwards, exit by exit, until `predicate` holds after one; to the last exit where it never does.
    ///
    /// - Returns: whether it held.
    public func run(forwardUntil predicate: (Timeline) throws -> Bool) throws -> Bool {
        while position.exit < last {
            try step()
            if try predicate(self) { return true }
        }
        return false
    }

    /// Moves back to the latest exit before this position at which `predicate` holds; to the first exit where there is
    /// none. Asks it at every exit on the way, from the nearest kept state on, then from the one before that.
    ///
    /// - Returns: whether it held.
    public func run(backwardUntil predicate: (Timeline) throws -> Bool) throws -> Bool {
        var end = position.exit.rawValue + (position.instructions > 0 || isAtEnd ? 1 : 0)
        while end > first.rawValue {
            // Ahead of the end lies a state from which replay takes some milliseconds, or a checkpoint.
            let start = nearestStart(atOrBefore: ExitNumber(end - 1)).rawValue
            var found: UInt64?
            try seek(to: ExitNumber(start))
            while true {
                if try predicate(self) { found = position.exit.rawValue }
                if position.exit.rawValue + 1 >= end { break }
                try step()
            }
            if let found {
                try seek(to: ExitNumber(found))
                return true
            }
            end = start
        }
        try seek(to: first)
        return false
    }

    /// Replays from here to an exit, or to the end, without a jump to a later checkpoint and without keeping states.
    public func play(to target: ExitNumber? = nil) throws {
        if let target {
            try checkIsWithin(target)
            precondition(target >= position.exit, "play goes forwards")
        }
        if !isSound { try restart(at: position.exit) }
        if target != position.exit || position.instructions > 0 { try run(to: target) }
    }

    /// Ends the movement that is going on, or the next one, with `Stopped`. For any thread.
    public var stopper: @Sendable () -> Void {
        let (flag, kicker) = (stopFlag, kicker)
        return {
            flag.set()
            kicker.kick()
        }
    }
    public func stop() { stopper() }

    /// A movement was ended by `stop`.
    public struct Stopped: Error, CustomStringConvertible {
        public var description: String { "stopped" }
    }

    /// Throws where the trace has no such exit.
    public func checkIsWithin(_ exit: ExitNumber) throws {
        guard exit >= first, exit <= last else { throw ReplayError.noSuchExit(exit, first: first, last: last) }
    }

    /// Whether the state here is complete in itself: the guest doesn't stand within an instruction.
    public var canBeKept: Bool { isSound && !isAtEnd && !machine.isWithinInstruction }

    /// The exits at which the trace has a checkpoint, ascending.
    public var checkpointExits: [ExitNumber] { checkpoints.map(\.exit) }

    /// The trace's checkpoint right after `exit`.
    func checkpoint(at exit: ExitNumber) -> CheckpointInfo? {
        checkpoints[..<checkpointIndex(after: exit)].last.flatMap { $0.exit == exit ? $0 : nil }
    }

    /// The exit of the last checkpoint at or before `exit`.
    public func nearestCheckpoint(atOrBefore exit: ExitNumber) -> ExitNumber {
        checkpoints[..<checkpointIndex(after: exit)].last?.exit ?? first
    }

    public func seek(to target: Position) throws {
        try checkIsWithin(target.exit)
        if isSound, !isAtEnd, position == target { return }
        try approach(target)
        let start = position.exit.rawValue
        while position.exit < target.exit {
            let left = target.exit.rawValue - position.exit.rawValue
            // On the way, states at distances 1, 2, 4, 8 … from the target are kept: what stepping back needs.
            let distance = left > 1 ? UInt64(1) << (UInt64.bitWidth - 1 - (left - 1).leadingZeroBitCount) : 0
            let leg = min(left - distance, pace)
            let began = hostTime()
            try run(to: ExitNumber(position.exit.rawValue + leg))
            let now = hostTime()
            if now - began < .milliseconds(4) { pace = min(pace * 2, 1 << 20) }
            if now - began > .milliseconds(12) { pace = max(1, pace / 2) }
            let isNear = leg == left - distance && distance > 0
            if isNear || now - lastSave > Self.waypointInterval { try save(isWaypoint: !isNear, near: target) }
            progress?(Double(position.exit.rawValue - start) / Double(target.exit.rawValue - start))
        }
        while position < target {
            try goOn(towards: target)
            guard position.exit == target.exit else {
                try seek(to: target.exit)
                throw ReplayError.noSuchInstruction(target)
            }
            let left = target.instructions - position.instructions
            if left > 0, left & (left - 1) == 0 { try save(isWaypoint: false, near: target) }
        }
    }

    /// Goes to the nearest state at or before `target`, unless going on from here is nearer.
    private func approach(_ target: Position) throws {
        let inMemory = saved.latest(atOrBefore: target)
        let onDisk = checkpoints[..<checkpointIndex(after: target.exit)].last
        if isSound, !isAtEnd, position <= target, position >= max(inMemory?.position ?? position,
                                                                  onDisk.map { Position(exit: $0.exit) } ?? position) {
            return
        }
        statistics.replays += 1
        if let inMemory, inMemory.position.exit >= onDisk?.exit ?? first {
            try restore(inMemory)
        } else if let onDisk {
            try restore(onDisk)
        }
    }

    /// Goes to a checkpoint of the trace, as it is stored.
    func open(_ checkpoint: CheckpointInfo) throws { try restore(checkpoint) }

    /// Goes to the latest checkpoint at or before an exit, and replays to it.
    private func restart(at exit: ExitNumber) throws {
        try approach(Position(exit: exit))
        if position.exit < exit { try run(to: exit) }
    }

    func nearestStart(atOrBefore exit: ExitNumber) -> ExitNumber {
        let inMemory = saved.latest(atOrBefore: Position(exit: exit, instructions: 0))?.position.exit ?? first
        return max(inMemory, nearestCheckpoint(atOrBefore: exit))
    }

    private func checkpointIndex(after exit: ExitNumber) -> Int {
        var (low, high) = (0, checkpoints.count)
        while low < high {
            let middle = (low + high) / 2
            if checkpoints[middle].exit <= exit { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// Runs the machine to an exit, or to the end of the trace.
    private func run(to target: ExitNumber?) throws {
        environment.target = target
        try runMachine()
        isAtEnd = target == nil
        isSound = true
    }

    /// Runs the machine until the environment stops it, and keeps count.
    func runMachine() throws {
        isSound = false
        let start = environment.last
        defer {
            statistics.exits += environment.last.rawValue - start.rawValue
            if environment.last != start { position = Position(exit: environment.last) }
        }
        do {
            if try machine.run(at: position.instructions > 0 || isAtEnd ? .between : .exit) == .stopped {
                stopFlag.clear()
                throw Stopped()
            }
        } catch HostError.call(let error) where error.call == "KVM_RUN" && error.errno == EINVAL {
            throw TraceError.corrupt(what: "KVM refuses to run its processor state",
                                     place: "the checkpoint before exit \(start.next.rawValue)")
        }
    }

    // MARK: States

    /// Keeps the state here in memory, as long as there is room, so that coming back copies pages and replays nothing.
    public func keep() throws { try save(isWaypoint: true, near: position) }

    /// Keeps the state here, where it can be restored.
    func save(isWaypoint: Bool, near here: Position) throws {
        guard canBeKept, image != nil else { return }
        lastSave = hostTime()
        try writes.take { dirty.insert($0) }
        guard dirty.count * pageSize < SavedStates.byteLimit, saved.makeRoom(pages: dirty.count, near: here) else {
            return
        }
        for page in dirty {
            let content = memory.page(page)
            if isZero(content) {
                image![page] = .zero
            } else if case .copy(let copy) = image![page], memcmp(copy.content.baseAddress!, content.baseAddress!, pageSize) == 0 {
                continue
            } else {
                image![page] = .copy(PageCopy(content, count: pages))
            }
        }
        dirty.removeAll(keepingCapacity: true)
        saved.insert(SavedState(position: position, mark: environment.mark, cpu: try engine.state(), memory: image!,
                                devices: environment.devices?.mark, isWaypoint: isWaypoint), near: here)
    }

    private func restore(_ state: SavedState) throws {
        isSound = false
        try replaceMemory(with: state.memory)
        try engine.setState(state.cpu)
        let counts = engine.retired != nil || state.position.instructions == 0
        machine.move(to: state.position.exit, instructions: counts ? InstructionCount(state.position.instructions) : nil)
        environment.move(to: state.mark)
        environment.devices = state.devices.map { DeviceReplay($0, engine: engine) }
        arrive(at: state.position)
        statistics.restores += 1
    }

    private func restore(_ checkpoint: CheckpointInfo) throws {
        isSound = false
        let stored = try reader.state(of: checkpoint.id)
        guard let cpu = CPUState(encoded: Array(stored.cpu)) else {
            throw TraceError.corrupt(what: "its processor state can't be read",
                                     place: "checkpoint \(checkpoint.id.rawValue)")
        }
        try replaceMemory(with: try images.image(of: checkpoint.id))
        do {
            try engine.setState(cpu)
        } catch {
            throw TraceError.corrupt(what: "KVM refuses its processor state (\(error))",
                                     place: "checkpoint \(checkpoint.id.rawValue)")
        }
        machine.move(to: checkpoint.exit)
        platform = withDevices ? try DeviceReplay.platform(stored, of: checkpoint.id) : nil
        try environment.move(to: checkpoint.exit, beforeEvent: checkpoint.event)
        arrive(at: Position(exit: checkpoint.exit))
        statistics.checkpointsLoaded += 1
        // The next time it is here without reading the trace.
        try save(isWaypoint: true, near: position)
    }

    private func arrive(at place: Position) {
        position = place
        isAtEnd = false
        isSound = true
        lastSave = hostTime()
    }

    /// Gives memory the content of an image. An instruction that an exit has left unfinished may still write to memory,
    /// so it is finished first. An engine that counts instructions has done nothing of an unfinished one.
    private func replaceMemory(with target: MemoryImage) throws {
        if engine.retired == nil { while try engine.settle() != nil {} }
        var stored: [(slot: PageSlot, page: Int)] = []
        // The contents are the target's and live as long.
        var copies: [(page: Int, content: UnsafeRawBufferPointer?)] = []
        func put(_ page: Int, _ content: ImagePage) {
            statistics.pagesCopied += 1
            switch content {
            case .zero: copies.append((page, nil))
            case .copy(let copy): copies.append((page, copy.content))
            case .stored(let slot): stored.append((slot, page))
            }
        }
        if let from = image {
            image = nil
            target.forEachDifference(from: from, put)
            try writes.take { put($0, target[$0]) }
            for page in dirty { put(page, target[page]) }
        } else {
            try writes.take { _ in }
            target.forEachDifference(from: MemoryImage(pages: memory.filePages), put)
            memory.forEachTouchedPage { page in
                if case .zero = target[page] { put(page, .zero) }
            }
        }
        writes.setPages(copies)
        // In the order in which they are stored, so that each extent is read once.
        stored.sort { $0.slot < $1.slot }
        for (slot, page) in stored { writes.setPages([(page, try contents.copy(of: slot, slots).content)]) }
        dirty.removeAll(keepingCapacity: true)
        image = target
    }
}
