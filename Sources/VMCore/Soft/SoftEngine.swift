import Glibc
import Synchronization

/// An x86-64 processor in software: needs nothing of the host, counts instructions, stops anywhere.
///
/// It belongs to the thread that makes it; only `kicker` may be used from others.
public final class SoftEngine: Engine {
    public let name = "soft"
    public let capabilities = EngineCapabilities.all
    public let memory: GuestMemory
    public var profile: ProcessorProfile { core.s.profile }

    let core: Core
    private let kick = KickFlag()
    private var deadline: Nanoseconds?
    /// The count at which the clock is looked at next.
    private var nextLook: UInt64 = 0
    /// Where the instruction stands that the last exit belongs to.
    enum Pending {
        case none
        /// Complete; more of its writes may follow.
        case complete
        case awaitsAnswer
        case answered
    }
    var pending = Pending.none
    private var tracksWrites = false
    /// The count at which a kick is due, once.
    private var kickCount = UInt64.max
    /// The count when the last exit was finished.
    var countAtExit: UInt64 = 0

    /// Most accesses to devices that one instruction makes.
    static let maximumAnswers = 160
    /// Instructions between two looks at the clock and at kicks: some 100 µs.
    private static let slice: UInt64 = 20_000

    public init(memory: GuestMemory, model: CPUModel) throws(HostError) {
        self.memory = memory
        // One more, which stays empty: see `Core.selectTLB`.
        let tables = UnsafeMutablePointer<TLBEntry>.allocate(capacity: (TLB.tables + 1) * TLB.entries)
        tables.initialize(repeating: TLBEntry(), count: (TLB.tables + 1) * TLB.entries)
        let codeTables = UnsafeMutablePointer<CodeTLBEntry>.allocate(capacity: 2 * TLB.codeEntries)
        codeTables.initialize(repeating: CodeTLBEntry(), count: 2 * TLB.codeEntries)
        let jumps = UnsafeMutablePointer<JumpEntry>.allocate(capacity: JumpEntry.count)
        jumps.initialize(repeating: JumpEntry(), count: JumpEntry.count)
        let regions = UnsafeMutablePointer<RAMRegion>.allocate(capacity: 8)
        for (i, region) in memory.map.regions.prefix(8).enumerated() {
            (regions + i).initialize(to: RAMRegion(firstPage: region.address.rawValue >> 12, pages: region.bytes >> 12,
                                                   filePage: region.fileOffset >> 12))
        }
        let cache = UnsafeMutablePointer<BlockCache>.allocate(capacity: 1)
        cache.initialize(to: BlockCache(filePages: memory.filePages))
        let cpuid = UnsafeMutablePointer<CPUIDTable>.allocate(capacity: 1)
        cpuid.initialize(to: CPUIDTable(model))
        let answers = UnsafeMutablePointer<UInt64>.allocate(capacity: Self.maximumAnswers)
        let outgoing = UnsafeMutablePointer<PendingExit>.allocate(capacity: Self.maximumAnswers)
        let file = UnsafeMutablePointer<RegisterFile>.allocate(capacity: 1)
        // calloc: zeros that cost nothing until touched.
        func words(_ count: Int) -> UnsafeMutablePointer<UInt64> {
            calloc(count, 8)!.bindMemory(to: UInt64.self, capacity: count)
        }
        file.initialize(to: RegisterFile(
            tlb: tables, codeTLB: codeTables, op: cache.pointee.scratch, jumps: jumps, answers: answers,
            outgoing: outgoing, portData: .allocate(byteCount: Int(Core.portBatch) + 8, alignment: 8), ram: memory.base,
            regions: regions, regionCount: memory.map.regions.count, codeLines: words(memory.filePages),
            written: words(memory.filePages / 64 + 1), cache: cache, cpuid: cpuid, tables: tables, codeTables: codeTables))
        core = Core(file)
        core.s.profile = model.profile
        core.s.mxcsrMask = model.profile.mxcsrMask ?? (core.s.cpuid.pointee.isAMD ? 0x2_FFFF : 0xFFFF)
        precondition(MemoryLayout<RegisterFile>.offset(of: \.zero) == Int(Slot.zero)
            && MemoryLayout<RegisterFile>.offset(of: \.rip) == Int(Slot.rip)
            && MemoryLayout<RegisterFile>.offset(of: \.segments) == Slot.segments)
        core.updateMode()
    }

    deinit {
        releaseWatched()
        let s = core.file.pointee
        s.cache.pointee.free()
        s.cache.deallocate()
        s.cpuid.deinitialize(count: 1)
        s.cpuid.deallocate()
        s.tables.deallocate()
        s.codeTables.deallocate()
        s.jumps.deallocate()
        s.regions.deallocate()
        s.answers.deallocate()
        s.outgoing.deallocate()
        s.portData.deallocate()
        s.floatingPoint.free()
        free(s.codeLines)
        free(s.written)
        core.file.deallocate()
    }

    /// What the reserved ports stand for.
    public var trapped: TrappedInstructions {
        get { core.s.trapped }
        set { core.s.trapped = newValue }
    }

    public var retired: InstructionCount? { InstructionCount(core.s.retired) }

    public var retiredSinceExit: InstructionCount? {
        get { InstructionCount(core.s.retired &- countAtExit) }
        set { countAtExit = core.s.retired &- (newValue?.rawValue ?? 0) }
    }

    /// The port reads that stand for RDTSC and RDTSCP are exits in every engine.
    public var canCountTimestamps: Bool { !trapped.contains(.timestamps) }

    public var timestampCounter: UInt64? {
        get { core.s.countsTimestamps ? core.s.retired &+ core.s.counterOffset : nil }
        set {
            core.s.countsTimestamps = newValue != nil
            core.s.counterOffset = (newValue ?? 0) &- core.s.retired
        }
    }

    // MARK: Running

    public func enter(until stop: StopCondition) throws(HostError) -> Arrival {
        if let arrival = try settle() { return arrival }
        takeMonitorWrites()
        switch stop {
        case .breakpoint(let address): setBreakpoint(address)
        default: setBreakpoint(nil)
        }
        let start = core.s.retired
        var stands = true
        while true {
            // What was asked for comes before kicks: these keep, and an arrival that is passed over is not made again.
            if stop == .window, isInterruptible { return .window }
            if stop == .step, core.s.retired != start { return .debug }
            if case .breakpoint(let address) = stop, !stands, linearRIP == address {
                if core.arrivalCounts { return .debug }
                core.s.passedArrivals += 1
            }
            if core.s.loweredPriority {
                core.s.loweredPriority = false
                return .kicked
            }
            if kick.take() || isLate { return .kicked }
            if core.s.retired >= kickCount {
                kickCount = .max
                return .kicked
            }
            let delivered = core.s.queued.kind != .none || hasReadyNMI
            if delivered, let arrival = try deliverQueued() { return arrival }
            // The handler's first instruction is where a step over a delivery ends.
            if delivered {
                // Exceptions that replace one another for ever: kicks are to be seen at once.
                if core.s.queued.kind != .none {
                    nextLook = 0
                    continue
                }
                if stop == .step { return .debug }
                stands = false
                continue
            }
            let count = core.s.retired
            if stop == .step || needsSingle || kickCount - core.s.retired < BlockCache.maximumInstructions {
                if let arrival = try stepOnce() { return arrival }
            } else {
                if let arrival = try runSlice(startsAtBreakpoint: stands) { return arrival }
            }
            // A long repeated string instruction isn't complete yet: the clock goes on all the same.
            if core.s.retired == count { nextLook = 0 }
            // With an exception in the queue the guest still stands where it stood.
            if core.s.queued.kind == .none { stands = false }
        }
    }

    /// Executes the instruction that the guest stands at, alone, or delivers what comes before it or the exception that it
    /// raises: the rest is for the engine whose place this one takes.
    ///
    /// - Returns: the exit that it makes; nil where it is done without.
    func executeOne() throws(HostError) -> Arrival? {
        if let arrival = try settle() { return arrival }
        takeMonitorWrites()
        setBreakpoint(nil)
        return core.s.queued.kind != .none || hasReadyNMI ? try deliverQueued() : try stepOnce()
    }

    /// Arrivals at the breakpoint where the general registers aren't the anchor's are passed, until `endFilter`.
    public func filterArrivals(by anchor: Anchor) {
        core.s.wantedSum = anchor.general
        core.s.wantedBits = anchor.generalMask
        core.s.passedArrivals = 0
    }

    /// Returns how many arrivals were passed.
    public func endFilter() -> Int {
        core.s.wantedBits = 0
        return core.s.passedArrivals
    }

    private var linearRIP: UInt64 { (core.s.codeBase &+ core.s.rip) & core.s.linearMask }

    /// Whether the deadline is over. The clock is looked at once a slice: a guest that makes an exit every few instructions
    /// would spend a tenth of its time on it.
    private var isLate: Bool {
        guard let deadline, core.s.retired >= nextLook else { return false }
        nextLook = core.s.retired &+ Self.slice
        return hostTime() >= deadline
    }

    /// Whether what follows the next instruction has to be looked at.
    private var needsSingle: Bool {
        core.s.shadow != 0 || core.s.flags & (Flag.tf | Flag.rf) != 0 || core.hasBreakpoints || core.s.watched != nil
    }

    private var hasReadyNMI: Bool { core.s.nmiPending != 0 && !core.s.nmiMasked && core.s.shadow == 0 }

    private func setBreakpoint(_ address: UInt64?) {
        guard address != (core.s.hasBreakpoint ? core.s.breakpoint : nil) else { return }
        core.s.hasBreakpoint = address != nil
        core.s.breakpoint = address ?? 0
        core.s.generation &+= 1
    }

    /// Runs blocks for a slice. Nil when the guest stands between two instructions and nothing is to be told.
    private func runSlice(startsAtBreakpoint: Bool) throws(HostError) -> Arrival? {
        core.s.sliceEnd = min(core.s.retired &+ Self.slice, kickCount)
        var first: UnsafeMutablePointer<Block>
        do throws(Trap) {
            first = try core.block(at: linearRIP, single: false)
        } catch {
            return try handle(error)
        }
        // A trap that has to be seen alone is started over; exits and exceptions are dealt with.
        if let trap = run(first) { return try handle(trap) }
        return outgoingExit()
    }

    /// Runs blocks from this one on, after which none runs any more: what follows may write to its code and isn't part of it,
    /// the delivery of a trap or the monitor.
    private func run(_ first: UnsafeMutablePointer<Block>) -> Trap? {
        let trap = core.run(first)
        core.s.block = nil
        return trap
    }

    /// Executes one instruction, or as much of a repeated one as it does at once.
    private func stepOnce() throws(HostError) -> Arrival? {
        let shadow = core.s.shadow
        let traps = core.s.flags & Flag.tf != 0
        let resumes = core.s.flags & Flag.rf != 0
        let count = core.s.retired
        if core.hasBreakpoints, !resumes, pendingInstructionBreakpoint() {
            return try handle(.exception(Vector.db))
        }
        if let watched = core.s.watched, !watched.pointee.isOpen {
            core.openWatch(watched)
            watch?.begins(InstructionView(core: core, watched: watched))
        }
        core.s.single = true
        defer { core.s.single = false }
        core.s.answersTaken = 0
        core.s.pendingBreakpoints = 0
        var trap: Trap?
        do throws(Trap) {
            let block = try core.block(at: linearRIP, single: true)
            core.s.sliceEnd = core.s.retired &+ 1
            core.s.shadow = 0
            trap = run(block)
        } catch {
            trap = error
        }
        if let trap {
            if trap.kind == .exit || trap.kind == .unsupported { core.s.shadow = shadow }
            return try handle(trap)
        }
        core.s.answerCount = 0
        core.s.answersTaken = 0
        if let watched = core.s.watched, core.s.retired != count {
            watched.pointee.isOpen = false
            watch?.ends(InstructionView(core: core, watched: watched))
        }
        if resumes { core.s.flags &= ~Flag.rf }
        let steps = traps && core.s.retired != count
        if steps || core.s.pendingBreakpoints != 0 {
            core.setDebugStatus(core.s.pendingBreakpoints, singleStep: steps)
            core.s.pendingBreakpoints = 0
            core.s.shadow = 0
            return try raise(.exception(Vector.db))
        }
        return outgoingExit()
    }

    /// Whether the guest has a breakpoint on the instruction that it stands at, with DR6 set for the fault. An instruction
    /// that is started over with an answer has passed it.
    private func pendingInstructionBreakpoint() -> Bool {
        guard core.s.answerCount == 0 else { return false }
        let met = core.instructionBreakpoints()
        guard met != 0 else { return false }
        core.setDebugStatus(met, singleStep: false)
        return true
    }

    private func handle(_ trap: Trap) throws(HostError) -> Arrival? {
        switch trap.kind {
        case .again: return try stepOnce()
        case .exit:
            pending = .awaitsAnswer
            // Started over with the answer, the instruction makes its writes again.
            core.s.outgoingCount = 0
            return .exit(makeExit(core.s.exit))
        case .exception, .nonCanonical:
            core.s.answerCount = 0
            core.s.outgoingCount = 0
            core.s.shadow = 0
            core.s.watched?.pointee.isOpen = false
            core.s.watched?.pointee.writeCount = 0
            return try raise(trap)
        case .shutdown:
            pending = .none
            return .exit(Exit(EventIdentity(kind: .shutdown)))
        case .unsupported: throw lacking()
        }
    }

    /// Delivers an exception; the writes to devices of the instruction before it, and of the delivery, follow.
    private func raise(_ trap: Trap, after first: UInt8? = nil) throws(HostError) -> Arrival? {
        let entered: UInt8?
        do throws(Trap) { entered = try core.raise(trap, after: first) } catch { return try handle(error) }
        if let entered { tellEntry(entered) }
        return outgoingExit()
    }

    private func lacking() -> HostError {
        let state = coreRegisters()
        let bytes = PageWalk(memory: memory, state: state).bytes(at: state.linearRIP, count: 15)
        return .softEngineLacks(rip: state.general.rip, bytes: bytes)
    }

    // MARK: Watching

    /// Someone who is told of each instruction; nil for nobody.
    public var watch: InstructionWatch? {
        didSet {
            if watch != nil, core.s.watched == nil {
                let watched = UnsafeMutablePointer<WatchedInstruction>.allocate(capacity: 1)
                watched.initialize(to: WatchedInstruction())
                core.s.watched = watched
            } else if watch == nil {
                releaseWatched()
            }
            core.s.watched?.pointee.isOpen = false
            // What goes the fast way isn't seen.
            core.flushTLB()
        }
    }

    private func releaseWatched() {
        guard let watched = core.s.watched else { return }
        watched.pointee.free()
        watched.deallocate()
        core.s.watched = nil
    }

    private func tellEntry(_ vector: UInt8) {
        if let watched = core.s.watched { watch?.enters(vector, InstructionView(core: core, watched: watched)) }
    }

    // MARK: Exits

    /// The next write of a completed instruction.
    private func outgoingExit() -> Arrival? {
        guard core.s.outgoingSent < core.s.outgoingCount else {
            core.s.outgoingCount = 0
            core.s.outgoingSent = 0
            if pending == .complete { countAtExit = core.s.retired }
            pending = .none
            return nil
        }
        pending = .complete
        let exit = core.s.outgoing[core.s.outgoingSent]
        core.s.outgoingSent += 1
        return .exit(makeExit(exit))
    }

    private func makeExit(_ exit: PendingExit) -> Exit {
        var made = Exit(EventIdentity(kind: exit.kind, size: exit.size, count: exit.count, address: exit.address),
                        value: exit.value)
        if exit.count > 1 {
            made.data = UnsafeMutableRawBufferPointer(start: core.s.portData, count: Int(exit.size) * Int(exit.count))
        }
        return made
    }

    public func answer(_ exit: Exit) throws(HostError) {
        guard pending == .awaitsAnswer else { return }
        core.s.answers[core.s.answerCount] = exit.value
        core.s.answerCount += 1
        core.s.answerFaulted = exit.identity.flags & EventIdentity.faulted != 0
        pending = .answered
    }

    public func settle() throws(HostError) -> Arrival? {
        switch pending {
        case .none: return nil
        case .complete: return outgoingExit()
        case .awaitsAnswer, .answered:
            if pending == .awaitsAnswer {
                // Nobody wants the exit any more: it is answered with nothing, so that it isn't made again.
                core.s.answers[core.s.answerCount] = 0
                core.s.answerCount += 1
                core.s.answerFaulted = false
            }
            pending = .none
            takeMonitorWrites()
            // An exception that the answer leads to is delivered: that finishes the instruction as well.
            if let arrival = try stepOnce() { return arrival }
            countAtExit = core.s.retired
            return nil
        }
    }

    // MARK: Interrupts

    private func deliverQueued() throws(HostError) -> Arrival? {
        let event = core.s.queued
        core.s.watched?.pointee.writeCount = 0
        do throws(Trap) {
            if event.kind == .none {
                core.s.nmiPending -= 1
                core.s.nmiMasked = true
                try core.deliver(Vector.nmi, code: nil, source: .external, returnTo: core.s.rip)
            } else {
                core.s.queued = QueuedEvent()
                if event.kind == .nmi { core.s.nmiMasked = true }
                core.s.isMonitorsFault = event.kind == .exception
                try core.deliver(event.vector, code: event.hasErrorCode ? event.errorCode : nil,
                                 source: event.kind == .exception ? .exception : .external, returnTo: core.s.rip)
            }
        } catch {
            return event.kind == .exception ? try raise(error, after: event.vector) : try handle(error)
        }
        tellEntry(event.kind == .none ? Vector.nmi : event.vector)
        return nil
    }

    public var isInterruptible: Bool {
        pending == .none && core.s.flags & Flag.if != 0 && core.s.shadow == 0 && core.s.queued.kind == .none
    }

    public func isReadyForNMI() throws(HostError) -> Bool {
        !core.s.nmiMasked && core.s.nmiPending == 0 && core.s.shadow == 0 && core.s.queued.kind == .none
    }

    public func queueInterrupt(_ vector: UInt8) throws(HostError) {
        core.s.queued = QueuedEvent(kind: .interrupt, vector: vector)
    }

    public func queueNMI() throws(HostError) { core.s.nmiPending = 1 }

    public var taskPriority: UInt8 {
        get { UInt8(truncatingIfNeeded: core.s.cr8) }
        set { core.s.cr8 = UInt64(newValue & 15) }
    }

    public var wantsRegisters = false

    /// The monitor's breakpoints aren't the guest's: nothing is replaced.
    public func debugRegistersActive() throws(HostError) -> Bool { false }

    public func makeAssistant() throws(HostError) -> SoftEngine? { nil }

    // MARK: Memory

    public func trackWrites() throws(HostError) { tracksWrites = true }

    public func takeWrittenPages(_ body: (Int) -> Void) throws(HostError) {
        takeMonitorWrites()
        reportWrites(body)
    }

    /// Calls `body` for each page written since the last call, and starts to watch anew.
    func reportWrites(_ body: (Int) -> Void) {
        var any = false
        for i in 0..<(memory.filePages / 64 + 1) {
            var word = core.s.written[i]
            guard word != 0 else { continue }
            any = true
            core.s.written[i] = 0
            while word != 0 {
                body(64 * i + word.trailingZeroBitCount)
                word &= word - 1
            }
        }
        guard any else { return }
        for i in 0..<(TLB.tables * TLB.entries) { core.s.tables[i].write = TLB.never }
    }

    /// Takes in what the monitor wrote to memory: code there is decoded anew, and it counts as written.
    private func takeMonitorWrites() {
        guard memory.hasMonitorWrites else { return }
        for page in memory.takeMonitorWrites() { noteForeignWrite(page) }
    }

    /// Somebody else wrote to a page.
    func noteForeignWrite(_ page: Int) { core.noteWrite(page, 0, pageSize) }

    public func noteReplacedPage(_ page: Int) {
        if core.s.codeLines[page] != 0 { core.dropCode(page: page, lines: .max) }
    }

    // MARK: Kicks

    public func armKick(at moment: Nanoseconds?) {
        guard moment != deadline else { return }
        deadline = moment
        nextLook = 0
    }

    public func armKick(atInstruction count: InstructionCount?) { kickCount = count?.rawValue ?? .max }

    public var kicker: Kicker {
        let flag = kick
        return Kicker { flag.set() }
    }
}

/// A request for attention from any thread.
private final class KickFlag: Sendable {
    private let flag = Atomic<Bool>(false)

    func set() { flag.store(true, ordering: .releasing) }
    func take() -> Bool {
        guard flag.load(ordering: .acquiring) else { return false }
        return flag.exchange(false, ordering: .acquiring)
    }
}

extension EngineCapabilities {
    /// Nothing is left out.
    static var all: Self {
        var all = Self()
        all.exactWindow = true
        all.breakpointKernel = true
        all.breakpointUser = true
        all.stepKernel = true
        all.stepUser = true
        all.stepToUser = true
        all.resumeFlag = true
        all.cheapBreakpoints = true
        return all
    }
}

extension Core {
    /// `GeneralRegisters.sum` of the registers.
    var generalSum: UInt64 {
        let g = s.gpr
        return GeneralRegisters.sum(g.0, g.1, g.2, g.3, g.4, g.5, g.6, g.7, g.8, g.9, g.10, g.11, g.12, g.13, g.14, g.15)
    }

    /// Whether the guest, which stands at the breakpoint, is to stop there.
    var arrivalCounts: Bool { s.wantedBits == 0 || (generalSum ^ s.wantedSum) & s.wantedBits == 0 }

    /// Brings the state back to the instruction that a trap interrupts.
    func trapped(_ trap: Trap) -> Trap {
        guard let block = s.block else { return trap }
        let op = s.op
        s.rip = (s.rip &+ UInt64(op.pointee.offset)) & s.ripMask
        s.retired &-= UInt64(block.pointee.instructions) - instructionsBefore(op)
        s.block = nil
        if trap.kind == .nonCanonical {
            return .exception(op.pointee.segment == SegmentIndex.noneStack || op.pointee.isStackAccess ? Vector.ss : Vector.gp, code: 0)
        }
        return trap
    }
}

extension MicroOp {
    /// PUSH, POP, CALL and RET reach the stack without an operand for it.
    var isStackAccess: Bool {
        switch code {
        case .push64, .pushImm64, .pop64, .call64, .callRegister64, .ret64: true
        default: false
        }
    }
}
