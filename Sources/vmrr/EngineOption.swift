import ArgumentParser
import Recorder
import Trace
import VMCore

/// `--engine`, for every command that runs a guest.
struct EngineOption: ParsableArguments {
    enum Choice: String, CaseIterable, ExpressibleByArgument {
        case kvm, soft, auto
    }

    @Option(name: .customLong("engine"),
            help: ArgumentHelp("What executes the guest: kvm; soft, a processor in software that needs no /dev/kvm, finds "
                + "every position at once and sees every instruction; auto, the faster of the two, found by trying both. "
                + "Default: for a trace the one that recorded it, else kvm; soft where KVM can't be used.", valueName: "kvm|soft|auto"))
    var choice: Choice?

    /// Opens the engine.
    ///
    /// - Parameter trace: what the trace that is to be replayed says of itself; nil for a guest that runs live.
    func open(for trace: TraceDescription? = nil) throws -> EngineHost {
        switch choice {
        case .kvm:
            let kvm = try EngineHost.openKVM()
            if let trace, let difference = Self.difference(of: trace, from: kvm) {
                say("vmrr: \(difference): a divergence may come of it; --engine soft does as the trace says")
            }
            return kvm
        case .soft: return .soft
        case .auto, nil: break
        }
        // Its own traces it replays without a search, and what KVM can't give back isn't tried there.
        if let trace, trace.timestamps == .record || choice == nil && trace.engine == EngineKind.soft.rawValue { return .soft }
        guard let kvm = try Self.openKVM() else { return .soft }
        if let trace, !Self.has(kvm, trace), Self.canBeSoft(trace) {
            say("vmrr: KVM lacks here what \(trace.cpuModel.name) has: engine soft")
            return .soft
        }
        if let trace, let difference = Self.difference(of: trace, from: kvm) {
            guard Self.canBeSoft(trace) else {
                say("vmrr: \(difference): a divergence may come of it")
                return kvm
            }
            if choice == .auto { say("vmrr: \(difference): engine soft, which does as the trace says") }
            return .soft
        }
        guard choice == .auto else { return kvm }
        let (ratio, found) = try Self.comparison(with: kvm)
        say("vmrr: engine \(ratio > 1 ? "soft" : "kvm"): \(found)")
        return ratio > 1 ? .soft : kvm
    }

    /// How many times faster the soft engine is than KVM, and both in words.
    private static func comparison(with kvm: EngineHost) throws -> (ratio: Double, text: String) {
        let (fast, slow) = (try EngineSpeed(of: .soft), try EngineSpeed(of: kvm))
        return (fast.instructionsPerSecond / slow.instructionsPerSecond,
                "kernel code takes \(slow.text) under KVM here, \(fast.text) in the soft engine")
    }

    /// How many times faster the soft engine must be for a run under KVM that its deadline ended to mention it.
    private static let strikingRatio = 4.0

    /// What kept a run from getting further before its deadline, where that is this KVM.
    static func obstacle(of ending: Ending, on host: EngineHost) -> String? {
        guard case .deadline = ending, host.kind == .kvm, let (ratio, text) = try? comparison(with: host), ratio > strikingRatio
        else { return nil }
        return "\(text): with --engine soft the run would get further"
    }

    /// In what way the processor here isn't the one of a recording, in words; nil where they are alike.
    private static func difference(of trace: TraceDescription, from host: EngineHost) -> String? {
        guard let here = host.profile, here != trace.cpuModel.profile else { return nil }
        let other = trace.engine == EngineKind.kvm.rawValue ? trace.hostCPU : "the trace's processor"
        return "what the manuals leave undefined, such as some flags, \(other) does otherwise than \(Host.cpuName) here"
    }

    private static func canBeSoft(_ trace: TraceDescription) -> Bool { has(.soft, trace) }

    /// Whether an engine has the processor of a trace.
    private static func has(_ host: EngineHost, _ trace: TraceDescription) -> Bool {
        (try? trace.cpuModel.check(against: host.supportedFeatures(), timestamps: trace.timestamps)) != nil
    }

    /// Nil where KVM is missing or out of reach, which the user is told.
    private static func openKVM() throws -> EngineHost? {
        do {
            return try EngineHost.openKVM()
        } catch {
            guard error.isLackOfKVM else { throw error }
            say("vmrr: \(error.summary): the soft engine runs the guest")
            return nil
        }
    }
}
