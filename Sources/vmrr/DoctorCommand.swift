import ArgumentParser
import Recorder
import VMCore

struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Tries out what this host's KVM can do, and says what follows from it.",
        discussion: "Status 69 where KVM can't be used: guests then run, are recorded and replay in the soft engine.")

    @Flag(help: "Print JSON.")
    var json = false

    /// What was found.
    private struct Findings {
        /// Nil where there is no KVM, which `obstacle` explains.
        var capabilities: EngineCapabilities?
        var obstacle: HostError?
        var tests: [SelfTestResult] = []
        var softSpeed: EngineSpeed
        var kvmSpeed: EngineSpeed?

        init() throws {
            softSpeed = try EngineSpeed(of: .soft)
            do {
                let system = try KVMSystem()
                let (found, results) = try SelfTests(system: system).all()
                (capabilities, tests) = (found, results)
                kvmSpeed = try EngineSpeed(of: .kvm(system, found))
            } catch let error as HostError where error.isLackOfKVM {
                obstacle = error
                tests.append(SelfTestResult(name: "KVM", outcome: .gap, detail: error.description))
            }
            if let kvmSpeed {
                tests.append(SelfTestResult(name: "kernel-mode speed", outcome: .works, detail: kvmSpeed.text))
            }
            tests.append(SelfTestResult(name: "soft engine", outcome: .works, detail: softSpeed.text))
        }

        var summary: String {
            guard let capabilities else { return "guests run, are recorded and replay in the soft engine" }
            let kernel = capabilities.canAnchor(cpl: 0), user = capabilities.canAnchor(cpl: 3)
            switch (kernel, user) {
            case (true, true): return "interrupts can enter anywhere and are found again in replay"
            case (true, false): return "interrupts can enter anywhere in kernel code; in user code they wait for an exit"
            default:
                return "interrupts enter at exits" + (capabilities.exactWindow ? " and at interrupt windows" : "") + " only"
            }
        }
    }

    func run() throws {
        try reporting {
            let findings = try Findings()
            let status = findings.obstacle == nil ? Status.done : .hostLacks
            if json {
                write(report(findings).text() + "\n")
                return status
            }
            write("host: \(Host.cpuName), Linux \(Host.kernel)\n")
            let width = findings.tests.map(\.name.count).max() ?? 0
            for result in findings.tests {
                let sign = switch result.outcome {
                case .works: "ok  "
                case .lacks: "no  "
                case .gap: "GAP "
                }
                let name = result.name + String(repeating: " ", count: width - result.name.count)
                write("\(sign) \(name)  \(result.detail)\n")
            }
            write(findings.summary + "\n")
            return status
        }
    }

    private func report(_ flags: UndefinedFlags) -> JSON {
        [
            "multiplication_sets_result": .bool(flags.multiplicationSetsResult),
            "multiplication_clears_zero": .bool(flags.multiplicationClearsZero),
            "division_keeps_all": .bool(flags.divisionKeepsAll), "shift_sets_auxiliary": .bool(flags.shiftSetsAuxiliary),
            "shifts_overflow_at_once": .bool(flags.shiftsOverflowAtOnce),
            "rotations_keep_overflow": .bool(flags.rotationsKeepOverflow),
            "double_shifts_return": .bool(flags.doubleShiftsReturn),
            "bit_manipulation_clears": .bool(flags.bitManipulationClears),
            "scan_tests_source": .bool(flags.scanTestsSource), "scan_sets_result": .bool(flags.scanSetsResult),
        ]
    }

    private func report(_ findings: Findings) -> JSON {
        let capabilities = findings.capabilities ?? EngineCapabilities(), profile = capabilities.profile
        return [
            "host_cpu": .string(Host.cpuName), "host_kernel": .string(Host.kernel),
            "kvm": .bool(findings.obstacle == nil), "obstacle": JSON(findings.obstacle?.description),
            "capabilities": [
                "exact_window": .bool(capabilities.exactWindow),
                "breakpoint_kernel": .bool(capabilities.breakpointKernel),
                "breakpoint_user": .bool(capabilities.breakpointUser),
                "step_kernel": .bool(capabilities.stepKernel), "step_user": .bool(capabilities.stepUser),
                "step_to_user": .bool(capabilities.stepToUser), "resume_flag": .bool(capabilities.resumeFlag),
            ],
            "processor_profile": [
                "undefined_flags": report(profile.undefinedFlags),
                "undefined_flags_user": profile.userFlags.map { report($0) } ?? .null,
                "own_features": .bool(profile.ownFeatures != nil),
                "bit_tests_vary": .bool(profile.bitTestsVary),
                "mxcsr_mask": profile.mxcsrMask.map { .integer(Int64($0)) } ?? .null,
                "halves_sysenter": .bool(profile.halvesSysenter),
                "faults_without_resume": .integer(Int64(profile.faultsWithoutResume)),
                "transfers_set_accessed": .bool(profile.transfersSetAccessed),
                "unwritten_by_save": .integer(Int64(profile.unwrittenBySave)),
                "keeps_last_instruction": .bool(profile.keepsLastInstruction),
                "halves_last_instruction": .bool(profile.halvesLastInstruction),
                "reads_before_modifying": .bool(profile.readsBeforeModifying),
                "loses_interrupt_shadow": .bool(capabilities.losesInterruptShadow),
            ],
            "instructions_per_second": [
                "kvm_kernel_mode": findings.kvmSpeed.map { .number($0.instructionsPerSecond) } ?? .null,
                "soft": .number(findings.softSpeed.instructionsPerSecond),
            ],
            "tests": .array(findings.tests.map {
                ["name": .string($0.name), "outcome": .string($0.outcome.rawValue), "detail": .string($0.detail)]
            }),
        ]
    }
}
