import ArgumentParser
import Recorder
import VMCore

struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Tries out what this host's KVM can do, and says what follows from it.")

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        try reporting {
            let system = try KVMSystem()
            let (capabilities, results) = try SelfTests(system: system).all()
            if json {
                write(report(capabilities, results).text() + "\n")
                return .done
            }
            write("host: \(Host.cpuName), Linux \(Host.kernel)\n")
            let width = results.map(\.name.count).max() ?? 0
            for result in results {
                let sign = switch result.outcome {
                case .works: "ok  "
                case .lacks: "no  "
                case .gap: "GAP "
                }
                let name = result.name + String(repeating: " ", count: width - result.name.count)
                write("\(sign) \(name)  \(result.detail)\n")
            }
            write(summary(capabilities) + "\n")
            return .done
        }
    }

    private func summary(_ capabilities: EngineCapabilities) -> String {
        let kernel = capabilities.canAnchor(cpl: 0), user = capabilities.canAnchor(cpl: 3)
        switch (kernel, user) {
        case (true, true): return "interrupts can enter anywhere and are found again in replay"
        case (true, false): return "interrupts can enter anywhere in kernel code; in user code they wait for an exit"
        default: return "interrupts enter at exits" + (capabilities.exactWindow ? " and at interrupt windows" : "") + " only"
        }
    }

    private func report(_ capabilities: EngineCapabilities, _ results: [SelfTestResult]) -> JSON {
        [
            "host_cpu": .string(Host.cpuName), "host_kernel": .string(Host.kernel),
            "capabilities": [
                "exact_window": .bool(capabilities.exactWindow),
                "breakpoint_kernel": .bool(capabilities.breakpointKernel),
                "breakpoint_user": .bool(capabilities.breakpointUser),
                "step_kernel": .bool(capabilities.stepKernel), "step_user": .bool(capabilities.stepUser),
                "step_to_user": .bool(capabilities.stepToUser), "resume_flag": .bool(capabilities.resumeFlag),
            ],
            "tests": .array(results.map {
                ["name": .string($0.name), "outcome": .string($0.outcome.rawValue), "detail": .string($0.detail)]
            }),
        ]
    }
}
