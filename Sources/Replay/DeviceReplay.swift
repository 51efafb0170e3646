import Foundation
import Trace
import VMCore

/// Runs the devices again beside a replay: from their state in a checkpoint, with the guest's own accesses and with what
/// the recording says they were given from outside.
///
/// Nothing of it enters the guest, whose answers come from the trace. What the devices would have answered is compared
/// with that: where the two differ, the models are not those that made the recording, and `mismatch` says so.
public final class DeviceReplay {
    /// The devices at a moment of the replay.
    struct Mark {
        var platform: Platform
        /// The first answer that differed from the recorded one.
        var mismatch: DeviceMismatch?
        /// What the devices were given after the last exit or interrupt. It belongs to the next one.
        var waiting: [DeviceInput] = []
    }

    var mark: Mark
    private let engine: any Engine

    public private(set) var platform: Platform {
        get { mark.platform }
        _modify { yield &mark.platform }
    }
    public private(set) var mismatch: DeviceMismatch? {
        get { mark.mismatch }
        set { mark.mismatch = newValue }
    }

    /// Starts from the devices of a checkpoint.
    public init(platform: Platform, engine: any Engine) {
        mark = Mark(platform: platform)
        self.engine = engine
    }

    /// The devices that a checkpoint holds; nil where it holds none, as it was taken without them.
    static func platform(_ stored: CheckpointState, of id: CheckpointID) throws(TraceError) -> Platform? {
        if stored.devices.isEmpty { return nil }
        do {
            return try JSONDecoder().decode(Platform.self, from: stored.devices)
        } catch {
            throw TraceError.corrupt(what: "its device state can't be read", place: "checkpoint \(id.rawValue)")
        }
    }

    /// Goes on from a moment of an earlier replay.
    init(_ mark: Mark, engine: any Engine) {
        self.mark = mark
        self.engine = engine
    }

    func queue(_ event: TraceEvent) {
        switch event.identity.kind {
        case .deviceTime:
            let time = Nanoseconds(event.value)
            mark.waiting.append(event.identity.address == 1 ? .advance(time) : .time(time))
        case .serialInput: mark.waiting.append(.serial(Array(event.payload ?? [])))
        default: break
        }
    }

    private func receive() {
        guard !mark.waiting.isEmpty else { return }
        for input in mark.waiting { mark.platform.receive(input) }
        mark.waiting.removeAll(keepingCapacity: true)
    }

    /// Takes note of an exit that was answered from the trace.
    func handle(_ exit: Exit, number: ExitNumber) {
        receive()
        var own = exit
        own.identity.flags = 0
        var elements: [UInt8] = []
        if let data = exit.data, exit.identity.kind == .portRead {
            elements = [UInt8](repeating: 0, count: data.count)
        }
        let mayHaveOutput = elements.withUnsafeMutableBytes {
            if !$0.isEmpty { own.data = $0 }
            return platform.handle(&own, taskPriority: engine.taskPriority)
        }
        if mayHaveOutput {
            if platform.hasOutput {
                _ = platform.takeSerialOutput()
                _ = platform.takeDebugOutput()
            }
            _ = platform.takeRequest()
        }
        compare(own, elements, with: exit, number)
    }

    private func compare(_ own: Exit, _ elements: [UInt8], with exit: Exit, _ number: ExitNumber) {
        guard mismatch == nil else { return }
        switch exit.identity.kind {
        case .portRead where exit.data != nil:
            guard let data = exit.data, !data.elementsEqual(elements) else { return }
            mismatch = DeviceMismatch(exit: number, access: exit.identity.text, recorded: nil, now: nil)
        case .portRead, .mmioRead, .msrRead, .msrWrite:
            guard own.value != exit.value || own.identity.flags != exit.identity.flags else { return }
            mismatch = DeviceMismatch(exit: number, access: exit.identity.text, recorded: exit.value, now: own.value)
        default: return
        }
    }

    /// Takes note of something that entered the guest.
    func enter(_ entry: Entry, after exit: ExitNumber) {
        receive()
        switch entry {
        case .interrupt(let vector):
            let own = platform.acknowledgeInterrupt(taskPriority: engine.taskPriority)
            if own != vector, mismatch == nil {
                mismatch = DeviceMismatch(exit: exit, access: "interrupt", recorded: UInt64(vector),
                                          now: own.map(UInt64.init))
            }
        case .nmi:
            if !platform.acknowledgeNMI(), mismatch == nil {
                mismatch = DeviceMismatch(exit: exit, access: "NMI", recorded: nil, now: nil)
            }
        default: break
        }
    }
}

/// Where devices that were run again first answered otherwise than in the recording.
public struct DeviceMismatch: Equatable, Sendable, CustomStringConvertible {
    public var exit: ExitNumber
    public var access: String
    /// Nil for a string of values, or for nothing.
    public var recorded: UInt64?
    public var now: UInt64?

    public var description: String {
        func text(_ value: UInt64?) -> String { value.map(hex) ?? "another" }
        return "at exit \(exit.rawValue) the devices answer otherwise than in the recording: \(access), recorded "
            + "\(text(recorded)), now \(text(now))"
    }
}
