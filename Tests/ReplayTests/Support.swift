import CKVM
import Foundation
import Recorder
import Replay
import Testing
import Trace
import VMCore

/// This host's KVM, with what it can.
struct KVM {
    var system: KVMSystem
    var capabilities: EngineCapabilities
    /// What records and replays.
    var kind = EngineKind.kvm
    var host: EngineHost { kind == .soft ? .soft : .kvm(system, capabilities) }

    init() throws {
        system = try KVMSystem()
        capabilities = try SelfTests(system: system).capabilities()
    }

    /// Whether guests can run here; the reason is printed where they can't.
    static let isUsable: Bool = {
        do {
            _ = try KVMSystem()
            return true
        } catch {
            print("SKIPPED: tests that need KVM: \(error)")
            return false
        }
    }()

    func timeline(_ path: String) throws -> Timeline { try host.timeline(path) }
}

extension EngineHost {
    func timeline(_ path: String) throws -> Timeline { try Timeline(reader: TraceReader(path: path), host: self) }
}

extension Trait where Self == ConditionTrait {
    static var needsKVM: Self { .enabled(if: KVM.isUsable, "KVM isn't usable here") }
}

/// How long the tests take: the defaults fit `make test`.
enum Sizes {
    private static func number(_ name: String, _ fallback: Int) -> Int {
        ProcessInfo.processInfo.environment[name].flatMap { Int($0) } ?? fallback
    }

    /// Random exits sought in each guest; from 200 on, the random walk takes 500 steps.
    static let seeks = number("VMRR_SEEKS", 12)
    /// Random positions visited in each guest of the walk over all instructions.
    static let positions = number("VMRR_POSITIONS", 20)
    static var walk: Int { seeks >= 200 ? 500 : 4 * seeks }
    /// The seed of everything random.
    static let seed = UInt64(number("VMRR_SEED", 2026))
}

/// A folder that goes away with the test.
final class Folder {
    let path = NSTemporaryDirectory() + "vmrr-replay-\(UInt32.random(in: 0...UInt32.max))"
    init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
    deinit { try? FileManager.default.removeItem(atPath: path) }
    func callAsFunction(_ name: String) -> String { path + "/" + name }
}

/// Built-in guests, shortened.
enum Guests {
    static let names = BuiltInGuest.all.map(\.name)

    private static let short = [
        "ticker": "ticks=60", "spin": "ticks=60", "lost-update": "ticks=60", "clocks": "rounds=300", "strings": "rounds=1",
        "churn": "rounds=8", "user": "rounds=60", "smc": "rounds=200", "nested-irq": "ticks=50", "nmi": "ipis=20 ticks=20",
        "fpu": "ticks=50", "paging": "rounds=20",
    ]

    /// Records a guest in this process; the trace has checkpoints every `interval` exits.
    static func record(_ name: String, _ words: String? = nil, interval: UInt64? = nil, to path: String,
                       on kvm: KVM) throws {
        try record(name, words, interval: interval, to: path, on: kvm.host)
    }

    static func record(_ name: String, _ words: String? = nil, interval: UInt64? = nil, to path: String,
                       on host: EngineHost) throws {
        let guest = try #require(BuiltInGuest.named(name))
        var configuration = MachineConfiguration(
            image: guest.guestImage(commandLine: words ?? short[name] ?? ""), memoryBytes: BuiltInGuest.memoryBytes,
            wallClockStart: 1_000_000_000)
        configuration.timestamps = guest.timestamps
        var options = RunOptions()
        options.live.deadline = .seconds(30)
        if host.kind == .soft {
            options.live.clock = .instructions(millionsPerSecond: MachineClock.defaultMillionsPerSecond)
        }
        let sink = FileHandle(forWritingAtPath: "/dev/null")!
        options.consoleDescriptor = sink.fileDescriptor
        options.serial = name == "echo"
            ? .script(try SerialScript(parsing: "expect \"ends\" \"hello\\r\"\n+20ms \"quit\\r\"\n")) : .none
        let plain = interval == nil ? path : path + ".plain"
        let recording = Recording(path: plain, guest: name, commandLine: [], version: "test")
        _ = try recording.record(configuration, on: host, options: options)
        guard let interval else { return }
        let timeline = try host.timeline(plain)
        try Snapshot(start: .start, checkpointInterval: interval).write(from: timeline, named: name, to: path)
    }
}

/// A state by its digests; the strict one may differ in accessed/dirty bits.
struct Digests: Equatable {
    var state: Digest128
    var memory: Digest128

    /// Reads all memory, and checks the timeline's own digests, which it keeps current, against that.
    init(_ timeline: Timeline) throws {
        state = try timeline.state().digest
        memory = MemoryDigest.ofAll(timeline.memory, kind: .masked)
        let strict = MemoryDigest.ofAll(timeline.memory, kind: .strict)
        let kept = try timeline.digests()
        #expect(kept == MachineDigests(state: state, memory: memory, memoryStrict: strict))
    }
}

/// The digests of a straight replay at these exits.
func straight(_ path: String, at exits: some Sequence<UInt64>, on kvm: KVM) throws -> [UInt64: Digests] {
    let timeline = try kvm.timeline(path)
    var digests: [UInt64: Digests] = [:]
    for exit in Set(exits).sorted() {
        try timeline.play(to: ExitNumber(exit))
        digests[exit] = try Digests(timeline)
    }
    return digests
}
