import Foundation
import PlantedGuest
import Recorder
import Replay
import Testing
import Trace
import VMCore

/// A guest with a fault that is known: Tests/PlantedGuest/planted.S.
struct Planted {
    let kvm: KVM
    let path: String
    let symbols: SymbolTable
    private let configuration: MachineConfiguration

    static let image = bytes(guest_planted().start, guest_planted().end)

    private static func bytes(_ start: UnsafePointer<UInt8>, _ end: UnsafePointer<UInt8>) -> [UInt8] {
        [UInt8](UnsafeBufferPointer(start: start, count: end - start))
    }

    /// Records the guest with these words for its command line; the trace has a checkpoint every `interval` exits.
    init(_ words: String, interval: UInt64, in folder: Folder, recordedBy recorder: EngineKind = .kvm,
         replayedBy kind: EngineKind = .kvm) throws {
        var kvm = try KVM()
        kvm.kind = recorder
        let recordingHost = kvm.host
        kvm.kind = kind
        self.kvm = kvm
        path = folder("planted.vmrr")
        configuration = MachineConfiguration(
            image: .multiboot(Self.image, commandLine: words, modules: []), memoryBytes: 16 << 20,
            wallClockStart: 1_000_000_000)
        var table = SymbolTable()
        var rest = Self.bytes(guest_planted().symbols_start, guest_planted().symbols_end)[...]
        func number() -> UInt64 {
            defer { rest = rest.dropFirst(4) }
            return rest.prefix(4).reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        while rest.count > 8 {
            let (address, size) = (number(), number())
            let name = rest.prefix { $0 != 0 }
            rest = rest.dropFirst(name.count + 1)
            table.add([Symbol(name: String(decoding: name, as: UTF8.self), address: address, size: size)])
        }
        symbols = table
        var options = RunOptions()
        options.live.deadline = .seconds(30)
        let sink = FileHandle(forWritingAtPath: "/dev/null")!
        options.consoleDescriptor = sink.fileDescriptor
        options.serial = .none
        let recording = Recording(path: path + ".plain", guest: "planted", commandLine: [], version: "test")
        let result = try recording.record(
            configuration, on: recordingHost, options: options)
        #expect(result.ending == .debugExit(0), "the guest does its rounds: \(result.ending)")
        let snapshot = Snapshot(start: .start, checkpointInterval: interval)
        let plain = try Timeline(
            reader: TraceReader(path: path + ".plain"), host: kvm.host, withDevices: true)
        try snapshot.write(from: plain, named: "planted", to: path)
    }

    func timeline(withDevices: Bool = false) throws -> Timeline {
        try Timeline(
            reader: TraceReader(path: path), host: kvm.host, withDevices: withDevices)
    }

    func predicate(_ source: String) throws -> GuestPredicate { try GuestPredicate(source, symbols: symbols) }

    // MARK: The log

    /// What the test's own log sees after an instruction.
    struct Look {
        var engine: any Engine
        /// The exit that the instruction made.
        var exit: Exit?

        func word(_ address: UInt64) -> UInt32 {
            engine.memory.load(GuestPhysicalAddress(address), as: UInt32.self) ?? 0
        }
        func registers() throws -> CoreRegisters { try engine.registers() }
    }

    /// Where something first was so.
    struct Found: Equatable {
        var position: Position
        /// Linear address of the instruction.
        var address: UInt64
        /// The interrupt that entered last before it, by its number among the trace's events.
        var interrupt: UInt64?
    }

    /// Runs the guest again, instruction by instruction, on an engine of its own and with nothing of Timeline or
    /// ReplayEnvironment: answers come from the trace's events, and interrupts enter where the registers are the
    /// recorded ones.
    func log(until condition: (Look) throws -> Bool) throws -> Found? {
        let engine = try configuration.build(on: kvm.host).engine
        var events = try Events(path)
        var position = Position(exit: .start)
        var interrupt: UInt64?
        while let next = events.next {
            if next.isEntry, try isDue(next, engine, at: position) {
                interrupt = next.sequence
                try deliver(UInt8(next.identity.address), to: engine)
                try events.advance()
                continue
            }
            let address = try engine.registers().linearRIP
            switch try engine.enter(until: stop(engine)) {
            case .debug:
                position.instructions += 1
                if try condition(Look(engine: engine)) {
                    return Found(position: position, address: address, interrupt: interrupt)
                }
            case .exit(var exit):
                let event = try #require(events.next)
                #expect(event.identity == exit.identity, "exit \(position.exit.rawValue + 1)")
                position = Position(exit: position.exit.next)
                if event.identity.kind == .portRead || event.identity.kind == .mmioRead { exit.value = event.value }
                try engine.answer(exit)
                // The step ends with the instruction.
                if case .exit? = try engine.settle() { throw Failure("an instruction with two exits") }
                try events.advance()
                if try condition(Look(engine: engine, exit: exit)) {
                    return Found(position: position, address: address, interrupt: interrupt)
                }
            default: continue
            }
        }
        return nil
    }

    /// One instruction. A step over IRETQ may take the next one along, so a breakpoint stands where it leads.
    private func stop(_ engine: any Engine) throws -> StopCondition {
        let registers = try engine.registers()
        // All of the guest's memory lies at its own address, and it has no other return of this kind.
        guard engine.memory.load(.init(registers.linearRIP), as: UInt16.self) == 0xCF48,
            let target = engine.memory.load(.init(registers.general.rsp), as: UInt64.self)
        else { return .step }
        return .breakpoint(target)
    }

    private func isDue(_ event: TraceEvent, _ engine: any Engine, at position: Position) throws -> Bool {
        guard event.exit == position.exit else { return false }
        let registers = try engine.registers()
        guard let anchor = event.anchor else {
            return event.identity.kind == .interruptAtExit ? position.instructions == 0 : engine.isInterruptible
        }
        return !anchor.flags(of: registers, engine.profile).isEmpty
    }

    /// Takes the guest to its handler: the gate's address, as 64-bit code has it.
    private func deliver(_ vector: UInt8, to engine: any Engine) throws {
        let gate = try engine.registers().idtr.base + UInt64(vector) * 16
        let low = try #require(engine.memory.load(.init(gate), as: UInt16.self))
        let high = try #require(engine.memory.load(.init(gate + 6), as: UInt16.self))
        try engine.queueInterrupt(vector)
        guard case .debug = try engine.enter(until: .breakpoint(UInt64(high) << 16 | UInt64(low))) else {
            throw Failure("the handler wasn't reached")
        }
    }

    struct Failure: Error, CustomStringConvertible {
        var description: String
        init(_ description: String) { self.description = description }
    }

    /// The exits and the interrupts of a trace, in their order.
    private struct Events {
        private var cursor: EventCursor
        private(set) var next: TraceEvent?

        init(_ path: String) throws {
            cursor = try TraceReader(path: path).cursor()
            try advance()
        }

        mutating func advance() throws {
            repeat { next = try cursor.next() } while next.map { !$0.isEntry && !$0.identity.kind.isExit } ?? false
        }
    }
}

extension TraceEvent {
    /// Whether an interrupt enters.
    var isEntry: Bool {
        [.interruptAtExit, .interruptAtWindow, .interruptAtAnchor].contains(identity.kind)
    }
}

extension TraceReader {
    /// Writes the trace anew, with its first checkpoint alone. `edit` is given each event and may change it, drop it by
    /// nil, or append others before it.
    func copy(to path: String, edit: (TraceEvent, TraceWriter) throws -> TraceEvent?) throws {
        let description = try #require(try meta(TraceDescription.key, as: TraceDescription.self))
        let start = try #require(checkpoints.first)
        let writer = try TraceWriter(path: path, metadata: [TraceDescription.key: description])
        let state = try state(of: start.id)
        var pages: [(UInt64, [UInt8])] = []
        try loadPages(start.id, pageLimit: 1 << 20) { number, bytes in
            if let bytes { pages.append((number, [UInt8](bytes))) }
        }
        pages.sort { $0.0 < $1.0 }
        try writer.writeCheckpoint(
            NewCheckpoint(exit: start.exit, cpu: state.cpu, devices: state.devices, digests: start.digests)
        ) { (emit: (UInt64, UnsafeRawPointer) throws(TraceError) -> Void) in
            for (number, page) in pages {
                try page.withUnsafeBytes { try emit(number, $0.baseAddress!) }
            }
        }
        var cursor = cursor()
        while let event = try cursor.next() {
            if let event = try edit(event, writer) { try writer.append(event) }
        }
        let ending = try meta(TraceEnding.key, as: TraceEnding.self)
        try writer.finish(meta: ending.map { [TraceEnding.key: $0] } ?? [:])
    }
}
